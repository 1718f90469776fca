from __future__ import annotations

from pathlib import Path

import pytest

from flows.interfaces import serve, servers
from tasks.settings import Places
from winnow.errors import WinnowError

PORTS = {"mlflow": 5000, "prefect": 4200}


def test_a_teams_mlflow_is_named_without_its_password_and_not_started() -> None:
    commands, pages = servers(Places(Path("/project")), "https://ann:secret@mlflow.example.org", PORTS)
    assert list(commands) == ["prefect"]
    assert pages == {"mlflow": "https://mlflow.example.org", "prefect": "http://127.0.0.1:4200"}


def test_the_projects_own_store_gets_a_server() -> None:
    places = Places(Path("/project"))
    commands, pages = servers(places, places.mlflow_store, PORTS)
    assert set(commands) == set(pages) == {"mlflow", "prefect"}
    assert places.mlflow_store in commands["mlflow"]
    assert pages["mlflow"] == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("mlflow", "prefect", "said"),
    [
        (99999, 4200, "--mlflow-port 99999: a port is a number"),
        (0, 4200, "from 1 to 65535"),
        (65001, 65001, "choose two"),
    ],
)
def test_ports_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: int, prefect: int, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    with pytest.raises(WinnowError, match=said):
        serve(Places(tmp_path), mlflow, prefect)
