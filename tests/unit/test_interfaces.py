from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from flows import interfaces
from flows.interfaces import planned, serve
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


def test_the_projects_own_store_gets_a_server() -> None:
    places = Places(Path("/project"))
    programs, pages = planned(places, places.mlflow_store, "", PORTS)
    assert {program.name for program in programs} == set(pages) == {"mlflow", "prefect"}
    assert places.mlflow_store in next(program.command for program in programs if program.name == "mlflow")
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
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(WinnowError, match=said):
        serve(Places(tmp_path), mlflow, prefect)


def test_a_process_that_dies_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    """`python -m this` says its lines and ends at once."""
    places, console = Places(tmp_path), Console(quiet=True)
    places.logs.mkdir(parents=True)
    program = interfaces.Program("short", ["this"])
    interfaces._start(program, places)
    for _ in range(interfaces.RESTARTS):
        assert program.process is not None
        program.process.wait()
        interfaces._keep_up(program, places, console)
    program.process.wait()
    with pytest.raises(WinnowError, match=r"short stops again and again; its log is .*short\.log"):
        interfaces._keep_up(program, places, console)
    assert (places.logs / "short.log").read_text().count("Beautiful is better") == interfaces.RESTARTS + 1


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_the_end_takes_children_along(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.logs.mkdir(parents=True)
    (tmp_path / "parent_of_one.py").write_text(PARENT)
    program = interfaces.Program("parent", ["parent_of_one"])
    interfaces._start(program, places)
    deadline = time.monotonic() + 30
    while not (told := (places.logs / "parent.log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(told))
    assert child.is_running()
    interfaces._end(program)
    assert program.process is not None
    assert program.process.returncode is not None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    interfaces._end(interfaces.Program("never started", []))
