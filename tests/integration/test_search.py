"""Test `winnow search` as a user runs it: started, killed, resumed, with its choice added to the tree."""

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
LIST_RUNS = """
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
def search_project(project: Project) -> Project:
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    settings = {
        "trials": TRIALS,
        "epochs": 4,
        "min_steps": 1,
        "batch_size": 32,
        "runtime": "ort",
        "max_drop_points": 40.0,
    }
    params["search"] = Search().model_dump(mode="json") | settings
    project.set_params(params)
    return project


def start_search(project: Project, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "winnow.cli.main", "search", *options],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended_trials(search_folder: Path) -> list[Any]:
    return [read_json(file) for file in sorted(search_folder.glob("trials/*/trial.json"))]


def test_a_killed_search_resumes_and_adds_its_choice_to_the_tree(search_project: Project) -> None:
    search_folder = search_project.root / ".winnow" / "search" / "default"
    process = start_search(search_project)
    while len(ended_trials(search_folder)) < 2 and process.poll() is None:
        time.sleep(0.2)
    time.sleep(1.5)  # into the next trial
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[0] is not None
    ended_before = ended_trials(search_folder)
    assert 2 <= len(ended_before) < TRIALS

    resumed = search_project.winnow("search", "--add", "found")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    summary = read_json(search_folder / "search.json")
    assert len(summary["trials"]) == TRIALS  # no trial is lost or counted twice
    points = [json.dumps(trial["point"], sort_keys=True) for trial in summary["trials"]]
    assert len(set(points)) == TRIALS
    assert (search_folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "chosen" in resumed.stdout
    assert "95 % interval" in resumed.stdout
    assert "of the processor's peak" in resumed.stdout

    # In MLflow: one search, a run below it for every trial.
    runs = json.loads(search_project.call(sys.executable, "-c", LIST_RUNS).stdout.splitlines()[-1])
    (search,) = [run for run in runs if run["kind"] == "search"]
    trials = [run for run in runs if run["kind"] == "trial"]
    assert search["status"] == "FINISHED"
    assert search["metrics"]["search/trials"] == TRIALS
    assert {run["parent"] for run in trials} == {search["id"]}
    assert len(trials) == TRIALS
    assert all(run["status"] != "RUNNING" for run in trials)

    # The chosen candidate is a stage like any other now.
    params = yaml.safe_load((search_project.root / "params.yaml").read_text())
    added = [name for name in params["candidates"] if name.startswith("found")]
    assert added
    stale = set(json.loads(search_project.dvc("status", "--json").stdout))
    assert {f"candidate@{name}" for name in added} <= stale
    assert "candidate@pruned" not in stale
    refused = search_project.winnow("search", "--add", "pruned")
    assert refused.returncode == 2
    assert "--add pruned: pruned, pruned-int8 exists already" in refused.stderr


def test_a_killed_worker_loses_no_trial(search_project: Project) -> None:
    search_folder = search_project.root / ".winnow" / "search" / "default"
    process = start_search(search_project, "--workers", "2")
    working = None
    while working is None and process.poll() is None:
        time.sleep(0.2)
        if len(ended_trials(search_folder)) >= 1:
            working = next(working_processes(search_folder, psutil.Process(process.pid)), None)
    assert working is not None, process.communicate()[0]
    worker, trial = working
    worker.kill()
    assert not (search_folder / "trials" / f"{trial:04d}" / "trial.json").exists()  # the trial had not ended
    output = process.communicate()[0]
    assert process.returncode == 0, output
    summary = read_json(search_folder / "search.json")
    assert len(summary["trials"]) == TRIALS
    assert {row["state"] for row in summary["trials"]} <= {"finished", "given up"}
    assert len({json.dumps(row["point"], sort_keys=True) for row in summary["trials"]}) == TRIALS
    assert trial in {row["number"] for row in summary["trials"]}
    assert len(ended_trials(search_folder)) == TRIALS

    runs = json.loads(search_project.call(sys.executable, "-c", LIST_RUNS).stdout.splitlines()[-1])
    (search,) = [run for run in runs if run["kind"] == "search"]
    trials = [run for run in runs if run["kind"] == "trial"]
    assert (search["status"], len(trials)) == ("FINISHED", TRIALS)


def test_workers_end_with_a_stopped_search_which_resumes_without_them(search_project: Project) -> None:
    search_folder = search_project.root / ".winnow" / "search" / "default"
    process = start_search(search_project, "--workers", "2")
    while not ended_trials(search_folder) and process.poll() is None:
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "winnow: stopped; run it again" in output
    assert psutil.wait_procs(children, timeout=20)[1] == []
    runs = json.loads(search_project.call(sys.executable, "-c", LIST_RUNS).stdout.splitlines()[-1])
    assert "RUNNING" not in {run["status"] for run in runs}
    resumed = search_project.winnow("search")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert len(read_json(search_folder / "search.json")["trials"]) == TRIALS


def working_processes(search_folder: Path, search: psutil.Process) -> Iterator[tuple[psutil.Process, int]]:
    """Yield the workers that hold the folder of a trial, and its number."""
    for child in search.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for file in child.open_files():
                path = Path(file.path)
                if path.name == ".lock" and path.parent.parent == search_folder / "trials":
                    yield child, int(path.parent.name)


def test_a_search_needs_dense(clean_project: Project) -> None:
    result = clean_project.winnow("search")
    assert result.returncode == 2
    assert "winnow run first" in result.stderr
