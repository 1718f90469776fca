"""Kill processes in the middle: no run stays Running or Pending, no process works unseen, and no slot is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tasks.project import gpu_slots
from tests.integration.conftest import Project
from tests.integration.running import RunningProject, start, start_run, stop

pytestmark = pytest.mark.services


def kill_flow(running: RunningProject, with_worker: bool = True) -> list[psutil.Process]:
    """Kill the flow and, by default, its worker; return the steps that remain."""
    worker, children = worker_and_children(running)
    steps = [child for child in children if {"dvc", "tasks", "tasks.stage_server"} & set(child.cmdline())]
    for child in (*([worker] if with_worker else []), *(child for child in children if child not in steps)):
        child.kill()
    return steps


def all_ended(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != "zombie" for process in processes):
            return True
        time.sleep(0.2)
    return False


def log_lines(running: RunningProject, run: str) -> str:
    rows = running.post(
        "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_DESC"}
    )
    return "\n".join(row["message"] for row in rows)


def resumes(running: RunningProject, run: str, seconds: float = 60) -> bool:
    """Return whether the run logs in time that its step resumes from a checkpoint."""
    deadline = time.monotonic() + seconds
    while "resuming from step" not in log_lines(running, run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_killed_while_running_it_goes_on_from_its_checkpoint(running: RunningProject) -> None:
    run = start_pretraining(running, 400)
    orphans = kill_flow(running)
    assert orphans
    assert all_ended(orphans, seconds=20)
    kill_time = time.monotonic()
    assert running.wait(run, "AwaitingRetry", "Retrying")
    assert 60 < time.monotonic() - kill_time < 200
    flow_run = running.wait(run, "Completed")
    assert flow_run["run_count"] == 2
    assert "resuming from step" in log_lines(running, run)


def test_a_pending_run_of_a_killed_worker_starts(running: RunningProject) -> None:
    run = running.schedule("winnow/photos")
    deadline = time.monotonic() + 60
    while (state := running.get(f"flow_runs/{run}")["state"]["type"]) != "PENDING" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state == "PENDING"
    kill_flow(running)
    assert running.get(f"flow_runs/{run}")["state"]["type"] == "PENDING"
    flow_run = running.wait(run, "Completed")
    assert flow_run["run_count"] == 1


def worker_and_children(running: RunningProject) -> tuple[psutil.Process, list[psutil.Process]]:
    """Return the worker and all its child processes."""
    worker = next(p for p in psutil.Process(running.process.pid).children() if "winnow.servers.worker" in p.cmdline())
    return worker, worker.children(recursive=True)


def start_pretraining(running: RunningProject, epochs: int) -> str:
    """Start a run and return its id in the middle of pretraining."""
    params = yaml.safe_load((running.project.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = epochs
    params["candidates"] = {"dense-int8": params["candidates"]["dense-int8"]}  # other candidates only take time
    running.project.set_params(params)
    checkpoints = running.project.root / ".winnow" / "checkpoints"
    earlier = set(checkpoints.glob("pretrain-*/*.safetensors"))  # a failed test may have left some
    run = running.schedule("winnow/photos")
    deadline = time.monotonic() + 120
    while not set(checkpoints.glob("pretrain-*/*.safetensors")) - earlier and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running.get(f"flow_runs/{run}")["state"]["name"] == "Running"
    return run


def test_a_killed_flow_is_restarted(running: RunningProject) -> None:
    run = start_pretraining(running, 401)
    assert all_ended(kill_flow(running, with_worker=False), seconds=20)
    running.wait(run, "Crashed", seconds=30)
    running.wait(run, "AwaitingRetry", "Running", seconds=150, through=("CRASHED",))
    assert resumes(running, run)
    assert running.get(f"flow_runs/{run}")["run_count"] == 2
    # A cancelled run is not restarted.
    _, children = worker_and_children(running)
    running.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    running.wait(run, "Cancelled")
    assert all_ended(children, seconds=20)
    time.sleep(100)  # longer than any automation waits
    assert running.get(f"flow_runs/{run}")["state"]["type"] == "CANCELLED"


def test_a_run_completes_after_its_worker_was_killed(running: RunningProject) -> None:
    run = start_pretraining(running, 402)
    worker_and_children(running)[0].kill()
    result = running.project.winnow("run")
    assert result.returncode == 2
    assert "another run works in" in result.stderr
    assert "another run works in" in running.project.winnow("status").stderr
    assert running.project.dvc("repro", "--single-item", "--force", "select").returncode != 0
    flow_run = running.wait(run, "Completed")
    assert flow_run["run_count"] == 1
    next_run_id = running.schedule("promote/photos")  # a new worker runs
    running.wait(next_run_id, "Completed")


def test_a_run_resumes_after_its_server_was_stopped(finished: tuple[Project, object], tmp_path: Path) -> None:
    started = start(finished[0].copy(tmp_path / "copy"))
    run = start_pretraining(started, 400)
    stop(started.process)
    time.sleep(75)  # after a minute, Prefect would forget it by default
    restarted = start(started.project)
    try:
        restarted.wait(run, "AwaitingRetry", "Retrying", "Running", seconds=120, through=("CRASHED",))
        assert resumes(restarted, run)
        assert restarted.get(f"flow_runs/{run}")["run_count"] == 2
    finally:
        stop(restarted.process)


HOLD_SLOT = """
import sys, time
from pathlib import Path
from tasks.project.environment import apply
apply(Path.cwd())
from tasks.project.gpu_slots import GPU, slot
with slot(GPU):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def hold_slot(running: RunningProject, seconds: float) -> subprocess.Popen[str]:
    environment = {**running.project.environment(), **running.variables}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD_SLOT, str(seconds)],
        cwd=running.project.root,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_slot_of_a_killed_process_is_released(running: RunningProject) -> None:
    first = hold_slot(running, 600)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    assert running.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["active_slots"] == 1
    second = hold_slot(running, 0)
    time.sleep(5)
    assert second.poll() is None  # it waits
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=180) == 0
    deadline = time.monotonic() + 10
    while running.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["active_slots"] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert running.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["active_slots"] == 0


def test_a_second_up_is_refused_and_leftovers_of_a_killed_one_are_ended(
    finished: tuple[Project, object], tmp_path: Path
) -> None:
    first = start(finished[0].copy(tmp_path / "copy"))
    children = psutil.Process(first.process.pid).children(recursive=True)
    try:
        second_up = first.project.winnow("up")
        assert second_up.returncode == 2
        assert f"process {first.process.pid} already runs the servers of this project" in second_up.stderr
        ui = first.project.winnow("ui")
        assert ui.returncode == 0, ui.stderr
        assert first.api.removesuffix("/api") in ui.stdout
        first.process.kill()
        first.process.wait()
        assert all(process.is_running() for process in children)
        restarted = start(first.project)
        assert all_ended(children, seconds=1)
        stop(restarted.process)
    finally:
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


STATES = """
import sqlite3
from pathlib import Path
from tasks.project import environment
from tasks.project.paths import ProjectPaths

environment.apply(Path.cwd())
prefect = sqlite3.connect(ProjectPaths(Path.cwd()).state_dir / "prefect" / "prefect.db")
mlflow = sqlite3.connect(ProjectPaths(Path.cwd()).state_dir / "mlflow" / "mlflow.db")
print("PREFECT", [row[0] for row in prefect.execute("select state_type from flow_run")])
print("MLFLOW", sorted({row[0] for row in mlflow.execute("select status from runs")}))
"""


def test_a_killed_run_by_hand_leaves_nothing_running(clean_project: Project) -> None:
    """Neither Prefect's temporary server nor a step continues, and no run stays in the state Running."""
    params = yaml.safe_load((clean_project.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = 5000
    clean_project.set_params(params)
    run = start_run(clean_project)
    checkpoints, deadline = clean_project.root / ".winnow" / "checkpoints", time.monotonic() + 300
    while not list(checkpoints.glob("pretrain-*/*.safetensors")) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.2)
    children = psutil.Process(run.pid).children(recursive=True)
    commands = [" ".join(child.cmdline()) for child in children]
    assert any("prefect.server" in command for command in commands)
    assert any("tasks.project.watchdog" in command for command in commands)
    status = clean_project.winnow("status")
    assert status.returncode == 0, status.stderr
    assert f"another run works in {clean_project.root}" in status.stdout
    assert "at step pretrain" in status.stdout
    run.kill()
    run.wait()
    assert all_ended(children, seconds=120), [child.cmdline() for child in children if child.is_running()]
    states = clean_project.call(sys.executable, "-c", STATES).stdout
    assert "PREFECT ['CRASHED']" in states
    assert "MLFLOW ['FAILED', 'FINISHED']" in states  # ingest had ended


def test_a_failed_run_leaves_no_watchdog(clean_project: Project) -> None:
    """The run fails at ingest, since there is only one class."""
    for folder in sorted((clean_project.root / "photos").iterdir())[1:]:
        shutil.rmtree(folder)
    run = start_run(clean_project)
    assert run.wait(timeout=300) == 2
    processes = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(clean_project.root) in (process.info["cmdline"] or ())
    ]
    assert all_ended(processes, seconds=10)
    assert (
        clean_project.root / ".winnow" / "logs" / "watchdog.log"
    ).read_text() == ""  # it ran, and had nothing to end
