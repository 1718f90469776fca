"""`winnow search` as a person runs it: begun, killed in the middle, gone on with, its choice put into the tree."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.conftest import Project
from winnow.config import Search
from winnow.records import read_json

pytestmark = pytest.mark.slow
TRIALS = 5
ASK = """
import json, sys
from pathlib import Path
from mlflow import MlflowClient
from tasks.project import environment
from tasks.tracking import mlflow_client
from tasks.project.paths import ProjectPaths
from winnow.config import load_config
environment.apply(Path.cwd())
paths = ProjectPaths(Path.cwd())
client = mlflow_client.connect(paths)
experiment = mlflow_client.experiment_id(paths, load_config("params.yaml"))
runs = [r for kind in ("search", "trial") for r in client.search_runs([experiment], f"tags.`winnow.kind` = '{kind}'")]
print(json.dumps([{"kind": r.data.tags["winnow.kind"], "parent": r.data.tags.get("mlflow.parentRunId"),
                   "id": r.info.run_id, "status": r.info.status, "metrics": r.data.metrics} for r in runs]))
"""


@pytest.fixture
def searching(project: Project) -> Project:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    asked = {"trials": TRIALS, "epochs": 4, "min_steps": 1, "batch_size": 32, "runtime": "ort", "max_drop_points": 40.0}
    params["search"] = Search().model_dump(mode="json") | asked
    project.set_params(params)
    return project


def begun(project: Project, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "winnow.cli.main", "search", *options],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(home: Path) -> list[Any]:
    return [read_json(file) for file in sorted(home.glob("trials/*/trial.json"))]


def test_a_search_that_is_killed_loses_no_trial_and_its_choice_joins_the_tree(searching: Project) -> None:
    home = searching.root / ".winnow" / "search" / "default"
    process = begun(searching)
    while len(ended(home)) < 2 and process.poll() is None:
        time.sleep(0.2)
    time.sleep(1.5)  # into the next one
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[0] is not None
    before = ended(home)
    assert 2 <= len(before) < TRIALS

    again = searching.winnow("search", "--add", "found")
    assert again.returncode == 0, again.stdout + again.stderr
    told = read_json(home / "search.json")
    assert len(told["trials"]) == TRIALS  # none lost, none counted twice
    points = [json.dumps(trial["point"], sort_keys=True) for trial in told["trials"]]
    assert len(set(points)) == TRIALS
    assert (home / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "chosen" in again.stdout
    assert "95 % interval" in again.stdout
    assert "of the processor's peak" in again.stdout

    # In MLflow: one search, a run below it for every trial.
    runs = json.loads(searching.call(sys.executable, "-c", ASK).stdout.splitlines()[-1])
    (search,) = [run for run in runs if run["kind"] == "search"]
    trials = [run for run in runs if run["kind"] == "trial"]
    assert search["status"] == "FINISHED"
    assert search["metrics"]["search/trials"] == TRIALS
    assert {run["parent"] for run in trials} == {search["id"]}
    assert len(trials) == TRIALS
    assert all(run["status"] != "RUNNING" for run in trials)

    # What it chose is a stage like any other now.
    params = yaml.safe_load((searching.root / "params.yaml").read_text())
    added = [name for name in params["candidates"] if name.startswith("found")]
    assert added
    stale = set(json.loads(searching.dvc("status", "--json").stdout))
    assert {f"candidate@{name}" for name in added} <= stale
    assert "candidate@pruned" not in stale
    taken = searching.winnow("search", "--add", "pruned")
    assert taken.returncode == 2
    assert "--add pruned: pruned, pruned-int8 exists already" in taken.stderr


def test_of_two_workers_one_is_killed_and_no_trial_is_lost_or_counted_twice(searching: Project) -> None:
    home = searching.root / ".winnow" / "search" / "default"
    process = begun(searching, "--workers", "2")
    busy = None
    while busy is None and process.poll() is None:
        time.sleep(0.2)
        if len(ended(home)) >= 1:
            busy = next(at_work(home, psutil.Process(process.pid)), None)
    assert busy is not None, process.communicate()[0]
    worker, trial = busy
    worker.kill()
    assert not (home / "trials" / f"{trial:04d}" / "trial.json").exists()  # it was not at its end
    said = process.communicate()[0]
    assert process.returncode == 0, said
    told = read_json(home / "search.json")
    assert len(told["trials"]) == TRIALS
    assert {each["state"] for each in told["trials"]} <= {"finished", "given up"}
    assert len({json.dumps(each["point"], sort_keys=True) for each in told["trials"]}) == TRIALS
    assert trial in {each["number"] for each in told["trials"]}
    assert len(ended(home)) == TRIALS

    runs = json.loads(searching.call(sys.executable, "-c", ASK).stdout.splitlines()[-1])
    (search,) = [run for run in runs if run["kind"] == "search"]
    trials = [run for run in runs if run["kind"] == "trial"]
    assert (search["status"], len(trials)) == ("FINISHED", TRIALS)


def test_workers_end_with_a_search_that_is_stopped_which_goes_on_alone(searching: Project) -> None:
    home = searching.root / ".winnow" / "search" / "default"
    process = begun(searching, "--workers", "2")
    while not ended(home) and process.poll() is None:
        time.sleep(0.2)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "winnow: stopped; run it again" in said
    assert psutil.wait_procs(below, timeout=20)[1] == []
    runs = json.loads(searching.call(sys.executable, "-c", ASK).stdout.splitlines()[-1])
    assert "RUNNING" not in {run["status"] for run in runs}
    again = searching.winnow("search")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(read_json(home / "search.json")["trials"]) == TRIALS


def at_work(home: Path, search: psutil.Process) -> Iterator[tuple[psutil.Process, int]]:
    """Workers that hold a trial's folder, with its number."""
    for child in search.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for file in child.open_files():
                at = Path(file.path)
                if at.name == ".lock" and at.parent.parent == home / "trials":
                    yield child, int(at.parent.name)


def test_without_dense_there_is_nothing_to_search_from(fresh: Project) -> None:
    refused = fresh.winnow("search")
    assert refused.returncode == 2
    assert "winnow run first" in refused.stderr
