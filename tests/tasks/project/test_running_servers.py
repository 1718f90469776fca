from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tasks.project.running_servers import check_prefect_database, prefect_database, temporary_server_errors
from winnow.errors import WinnowError


def test_a_damaged_database_of_prefect_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    check_prefect_database()  # there is none yet
    assert not prefect_database().exists()
    with closing(sqlite3.connect(prefect_database())) as database:
        database.execute("create table flow_run (name)")
        database.execute("begin exclusive")
        check_prefect_database()  # in use by a server
    check_prefect_database()
    prefect_database().write_bytes(bytes(range(100)))
    with pytest.raises(WinnowError) as exc_info:
        check_prefect_database()
    assert str(prefect_database()) in str(exc_info.value)


def test_only_errors_of_the_temporary_server_are_converted() -> None:
    text = "Timed out while attempting to connect to ephemeral Prefect API server."
    with pytest.raises(WinnowError), temporary_server_errors():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="other"), temporary_server_errors():
        raise RuntimeError("other")
