"""Test runs whose prefect.db cannot be used by Prefect's temporary server."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import pytest

from tests.integration.conftest import Project

QUICK = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "3"}


def assert_error(project: Project, message: str) -> None:
    result = project.winnow("run")
    assert result.returncode == 2, result.stderr[-2000:]
    assert message in result.stderr
    assert "winnow: " in result.stderr
    assert "Traceback" not in result.stderr.partition("winnow: ")[2]


@pytest.mark.thorough
def test_a_damaged_database_of_prefect_is_one_message(clean_project: Project) -> None:
    database = clean_project.root / ".winnow" / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(bytes(range(100)))
    started = time.monotonic()
    assert_error(clean_project, f"{database} is damaged")
    assert time.monotonic() - started < 60


@pytest.mark.thorough
def test_a_temporary_server_that_does_not_start_is_one_message(clean_project: Project) -> None:
    path = clean_project.root / ".winnow" / "prefect" / "prefect.db"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('ffffffffffff')")
        database.commit()
    assert_error(replace(clean_project, variables=QUICK), f"If {path} is damaged or of a newer version of Prefect")
