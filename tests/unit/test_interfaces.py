from __future__ import annotations

from pathlib import Path

import pytest

from flows.interfaces import _told, planned, serve
from tasks.servers import check_prefect
from tasks.settings import Places
from winnow.errors import WinnowError

PORTS = {"mlflow": 5000, "prefect": 4200}


def test_a_teams_mlflow_is_named_without_its_password_and_not_started() -> None:
    programs, pages = planned(Places(Path("/project")), "https://ann:secret@mlflow.example.org", "", PORTS)
    assert [program.name for program in programs] == ["prefect"]
    assert pages == {"mlflow": "https://mlflow.example.org", "prefect": "http://127.0.0.1:4200"}


def test_a_teams_prefect_is_named_and_not_started() -> None:
    places = Places(Path("/project"))
    programs, pages = planned(places, places.mlflow_store, "http://prefect.example.org/api", PORTS)
    assert [program.name for program in programs] == ["mlflow"]
    assert pages["prefect"] == "http://prefect.example.org"


def test_an_address_of_another_shape_stays_as_it_is() -> None:
    places, cloud = Places(Path("/project")), "https://prefect.example.org/api/accounts/1/workspaces/2"
    assert planned(places, places.mlflow_store, cloud, PORTS)[1]["prefect"] == cloud


def test_the_projects_own_store_gets_a_server() -> None:
    places = Places(Path("/project"))
    programs, pages = planned(places, places.mlflow_store, "", PORTS)
    assert {program.name for program in programs} == set(pages) == {"mlflow", "prefect"}
    assert places.mlflow_store in next(program.command for program in programs if program.name == "mlflow")
    assert pages["mlflow"] == "http://127.0.0.1:5000"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_address_of_its_own_server_names_no_team(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://{host}:4200/api")
    assert _told(4200) == ""
    assert _told(4300) == f"http://{host}:4200/api"


def test_a_prefect_that_is_not_there_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:secret@127.0.0.1:1/api")
    with pytest.raises(WinnowError, match=r"nobody answers at http://127\.0\.0\.1:1/api: start that server"):
        check_prefect()


@pytest.mark.parametrize(
    ("mlflow", "prefect", "said"),
    [
        (99999, 4200, "--mlflow-port 99999: a port is a number"),
        (0, 4200, "from 1 to 65535"),
        (65001, 65001, "two servers cannot have one port"),
    ],
)
def test_ports_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: int, prefect: int, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x.db")
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_UI_API_URL"):
        monkeypatch.setenv(name, "")
    with pytest.raises(WinnowError, match=said):
        serve(Places(tmp_path), mlflow, prefect)
