"""Killed in the middle: nothing stays Running or Pending for ever, nothing works on unseen, no slot is lost."""

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
from tests.integration.running import Up, begun_by_hand, start, stop

pytestmark = pytest.mark.services


def kill_flow(up: Up, with_worker: bool = True) -> list[psutil.Process]:
    """kill -9 of the flow and of the worker above it; the steps of the flow that are left behind."""
    worker, family = family_of(up)
    steps = [member for member in family if {"dvc", "tasks"} & set(member.cmdline())]
    for member in (*([worker] if with_worker else []), *(member for member in family if member not in steps)):
        member.kill()
    return steps


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != "zombie" for process in processes):
            return True
        time.sleep(0.2)
    return False


def log_lines(up: Up, run: str) -> str:
    rows = up.post("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_DESC"})
    return "\n".join(row["message"] for row in rows)


def goes_on(up: Up, run: str, seconds: float = 60) -> bool:
    """Whether the run says in time that its step goes on from a checkpoint."""
    deadline = time.monotonic() + seconds
    while "resuming from step" not in log_lines(up, run):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def test_killed_while_running_it_goes_on_from_its_checkpoint(up: Up) -> None:
    run = begun(up, 400)
    left = kill_flow(up)
    assert left
    assert gone(left, seconds=20)
    killed = time.monotonic()
    assert up.wait(run, "AwaitingRetry", "Retrying")
    assert 60 < time.monotonic() - killed < 200
    found = up.wait(run, "Completed")
    assert found["run_count"] == 2
    assert "resuming from step" in log_lines(up, run)


def test_killed_while_pending_it_starts_after_all(up: Up) -> None:
    run = up.schedule("winnow/photos")
    deadline = time.monotonic() + 60
    while (state := up.get(f"flow_runs/{run}")["state"]["type"]) != "PENDING" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state == "PENDING"
    kill_flow(up)
    assert up.get(f"flow_runs/{run}")["state"]["type"] == "PENDING"
    found = up.wait(run, "Completed")
    assert found["run_count"] == 1


def family_of(up: Up) -> tuple[psutil.Process, list[psutil.Process]]:
    """The worker and all below it."""
    worker = next(p for p in psutil.Process(up.process.pid).children() if "winnow.servers.worker" in p.cmdline())
    return worker, worker.children(recursive=True)


def begun(up: Up, epochs: int) -> str:
    """A run in the middle of pretraining."""
    params = yaml.safe_load((up.project.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = epochs
    params["candidates"] = {"dense-int8": params["candidates"]["dense-int8"]}  # the rest of the tree costs time only
    up.project.set_params(params)
    checkpoints = up.project.root / ".winnow" / "checkpoints"
    before = set(checkpoints.glob("pretrain-*/*.safetensors"))  # a test that failed may have left some
    run = up.schedule("winnow/photos")
    deadline = time.monotonic() + 120
    while not set(checkpoints.glob("pretrain-*/*.safetensors")) - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert up.get(f"flow_runs/{run}")["state"]["name"] == "Running"
    return run


def test_the_flow_killed_alone_is_taken_up_too(up: Up) -> None:
    run = begun(up, 401)
    assert gone(kill_flow(up, with_worker=False), seconds=20)
    up.wait(run, "Crashed", seconds=30)
    up.wait(run, "AwaitingRetry", "Running", seconds=150, through=("CRASHED",))
    assert goes_on(up, run)
    assert up.get(f"flow_runs/{run}")["run_count"] == 2
    # What a person ends stays ended.
    _, family = family_of(up)
    up.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    up.wait(run, "Cancelled")
    assert gone(family, seconds=20)
    time.sleep(100)  # longer than any automation waits
    assert up.get(f"flow_runs/{run}")["state"]["type"] == "CANCELLED"


def test_the_worker_killed_alone_its_run_ends_and_nothing_works_beside_it(up: Up) -> None:
    run = begun(up, 402)
    family_of(up)[0].kill()
    by_hand = up.project.winnow("run")
    assert by_hand.returncode == 2
    assert "another run works in" in by_hand.stderr
    assert "another run works in" in up.project.winnow("status").stderr
    assert up.project.dvc("repro", "--single-item", "--force", "select").returncode != 0
    found = up.wait(run, "Completed")
    assert found["run_count"] == 1
    later = up.schedule("promote/photos")  # another worker is there
    up.wait(later, "Completed")


def test_what_ended_together_with_its_server_goes_on_when_both_are_back(
    finished: tuple[Project, object], tmp_path: Path
) -> None:
    first = start(finished[0].copy(tmp_path / "copy"))
    run = begun(first, 400)
    stop(first.process)
    time.sleep(75)  # after a minute Prefect forgets, unless told otherwise
    second = start(first.project)
    try:
        second.wait(run, "AwaitingRetry", "Retrying", "Running", seconds=120, through=("CRASHED",))
        assert goes_on(second, run)
        assert second.get(f"flow_runs/{run}")["run_count"] == 2
    finally:
        stop(second.process)


HOLD = """
import sys, time
from pathlib import Path
from tasks.project.environment import apply
apply(Path.cwd())
from tasks.project.gpu_slots import GPU, slot
with slot(GPU):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def hold(up: Up, seconds: float) -> subprocess.Popen[str]:
    environment = {**up.project.environment(), **up.variables}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(seconds)],
        cwd=up.project.root,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_slot_of_a_killed_process_comes_back(up: Up) -> None:
    first = hold(up, 600)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    assert up.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["active_slots"] == 1
    second = hold(up, 0)
    time.sleep(5)
    assert second.poll() is None  # it waits
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=180) == 0
    deadline = time.monotonic() + 10
    while up.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["active_slots"] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert up.get(f"v2/concurrency_limits/{gpu_slots.GPU}")["active_slots"] == 0


def test_a_second_one_is_refused_and_what_a_killed_one_left_is_ended(
    finished: tuple[Project, object], tmp_path: Path
) -> None:
    first = start(finished[0].copy(tmp_path / "copy"))
    left = psutil.Process(first.process.pid).children(recursive=True)
    try:
        refused = first.project.winnow("up")
        assert refused.returncode == 2
        assert f"process {first.process.pid} already runs the servers of this project" in refused.stderr
        shown = first.project.winnow("ui")
        assert shown.returncode == 0, shown.stderr
        assert first.api.removesuffix("/api") in shown.stdout
        first.process.kill()
        first.process.wait()
        assert all(process.is_running() for process in left)
        second = start(first.project)
        assert gone(left, seconds=1)
        stop(second.process)
    finally:
        for process in left:
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


def test_a_killed_run_by_hand_leaves_nothing_running(fresh: Project) -> None:
    """Neither Prefect's temporary server nor a step, nor a run that is called running."""
    params = yaml.safe_load((fresh.root / "params.yaml").read_text())
    params["pretrain"]["epochs"] = 5000
    fresh.set_params(params)
    run = begun_by_hand(fresh)
    checkpoints, deadline = fresh.root / ".winnow" / "checkpoints", time.monotonic() + 300
    while not list(checkpoints.glob("pretrain-*/*.safetensors")) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.2)
    family = psutil.Process(run.pid).children(recursive=True)
    commands = [" ".join(member.cmdline()) for member in family]
    assert any("prefect.server" in command for command in commands)
    assert any("tasks.project.watchdog" in command for command in commands)
    status = fresh.winnow("status")
    assert status.returncode == 0, status.stderr
    assert f"another run works in {fresh.root}" in status.stdout
    assert "at step pretrain" in status.stdout
    run.kill()
    run.wait()
    assert gone(family, seconds=120), [member.cmdline() for member in family if member.is_running()]
    told = fresh.call(sys.executable, "-c", STATES).stdout
    assert "PREFECT ['CRASHED']" in told
    assert "MLFLOW ['FAILED', 'FINISHED']" in told  # ingest had ended


def test_a_run_that_ends_by_itself_leaves_no_watchdog(fresh: Project) -> None:
    """Here it ends with a step that fails: of one class nobody can learn."""
    for folder in sorted((fresh.root / "photos").iterdir())[1:]:
        shutil.rmtree(folder)
    run = begun_by_hand(fresh)
    assert run.wait(timeout=300) == 2
    here = [one for one in psutil.process_iter(["cmdline"]) if str(fresh.root) in (one.info["cmdline"] or ())]
    assert gone(here, seconds=10)
    assert (fresh.root / ".winnow" / "logs" / "watchdog.log").read_text() == ""  # it was there, and tidied up nothing
