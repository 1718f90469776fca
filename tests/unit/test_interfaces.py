from __future__ import annotations

from pathlib import Path

from flows.interfaces import servers
from tasks.settings import Places

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
