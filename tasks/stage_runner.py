"""One way to run a DVC stage, which the Prefect task of every step shares (tasks/pretrain.py and its neighbours).

The stage runs in a child process: a step that runs out of memory is a failed task, and not the end of the flow. While
it trains, its curves are read from the checkpoint folder and passed on to MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, TypedDict

from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks import time_left
from tasks.project import gpu_slots, run_lock
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import STEP_TIMES
from tasks.stage_processes import StageProcess, start_stage
from tasks.tracking import mlflow_runs
from tasks.tracking.mlflow_client import StoreError
from tasks.versioning import dvc_stages, integrity
from winnow.config import load_config
from winnow.errors import WinnowError
from winnow.eta import RESUMING

FOLLOW_SECONDS = 2.0
_running: list[tuple[str, StageProcess]] = []
"""(MLflow run of the execution, process) of the stages that run in this process."""
_stopped_runs: set[str] = set()
"""Executions that were stopped: they begin no other stage. A later one of this process has another number."""
OUT_OF_MEMORY = (137, -9)
MENDABLE = 2
"""Exit status of a step whose error the user has to fix."""
RETRY_SECONDS = 30
ON_GPU = ("pretrain", "finetune", "candidate", "benchmark", "refit")


class StageFailed(WinnowError):
    """A step ended with an error that the user has to fix; the message holds the step's own last lines."""


class StageDied(StageFailed):
    """A step was killed, or ended by an internal error: another try may end well."""


class StageResult(TypedDict):
    """The outcome of a stage."""

    stage: str
    """Name of the step or candidate: pretrain, pruned-int8, ..."""
    outcome: str
    """ran, restored (from DVC's cache) or unchanged."""
    seconds: float
    """Seconds of the whole task."""
    own: float
    """Seconds of the step itself, without process, imports, DVC and tracking; 0 where it did not run."""


def can_be_retried(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether a failed task should be retried: its step died, or MLflow did not respond."""
    return isinstance(state.data, StageDied | StoreError)


RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": can_be_retried,
}
"""Options of all tasks; the flow sets how many `retries` they have."""


def run_stage(root: str, stage: str, parent_run: str | None) -> StageResult:
    """Bring one DVC stage up to date and log its record to MLflow below `parent_run`.

    `parent_run`: None where DVC calls the stage up to date: nothing is run then, and the task only shows in the graph.
    Raises StageFailed.
    """
    step, name = stage.partition("@")[0], stage.removeprefix(dvc_stages.CANDIDATE_PREFIX)
    if parent_run is None:
        return {"stage": name, "outcome": "unchanged", "seconds": 0.0, "own": 0.0}
    paths = ProjectPaths(Path(root))
    known = {item.name: item for item in dvc_stages.stages(load_config(paths.root / "params.yaml"))}
    out = paths.artifacts / known[stage].out
    log = get_run_logger()
    run_id = mlflow_runs.open_step(paths, parent_run, known[stage].out.rpartition("/")[2], step)
    if line := time_left.begin_step(parent_run, name):
        log.info("%s", line)
    started = time.monotonic()
    try:
        with gpu_slots.gpu_slot() if step in ON_GPU else contextlib.nullcontext():
            lines = _stream(paths, stage, name, (parent_run, run_id), log)
            if dvc_stages.parse_outcome(lines) == "restored" and (damaged := integrity.find_damaged(paths)):
                log.warning("%s in DVC's cache; %s runs again", integrity.describe_damaged(paths, damaged), name)
                integrity.remove_damaged(paths, damaged)
                lines = _stream(paths, stage, name, (parent_run, run_id), log)
        outcome = dvc_stages.parse_outcome(lines)
        if outcome == "ran":
            integrity.mark_verified(paths, stage)
        mlflow_runs.close_step(paths, run_id, out)
    except BaseException as error:
        mlflow_runs.fail_step(paths, run_id, str(error) or type(error).__name__)
        raise
    times = STEP_TIMES.read(paths, name) if outcome == "ran" else None
    own = times["step"] if times else 0.0
    did_all = outcome == "ran" and not any(line.startswith(RESUMING) for line in lines)
    time_left.end_step(parent_run, name, own if did_all else None)
    return {"stage": name, "outcome": outcome, "seconds": time.monotonic() - started, "own": own}


def stop_running(parent_run: str) -> None:
    """End the stage of this run, and let it begin no other.

    For the main thread: a signal never reaches a task's own.
    """
    _stopped_runs.add(parent_run)
    for run, process in list(_running):
        if run == parent_run:
            _stop(process)


def _stream(paths: ProjectPaths, stage: str, label: str, runs: tuple[str, str], log: Any) -> list[str]:
    """Run the stage and return its lines, passed on; StageFailed with the last of them when it does not end well.

    `runs`: MLflow's run of the execution, and of this step in it.
    """
    parent_run, _ = runs
    if parent_run in _stopped_runs:
        raise StageFailed(f"step {label} was not begun: the run was stopped")
    process = start_stage(paths.root, stage)
    run_lock.record_step(paths, label)
    _running.append((parent_run, process))
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(paths, label, runs, ended, log), daemon=True)
    follower.start()
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if not dvc_stages.is_noise(line):
                log.info("%s", line.rstrip())
        status = process.wait()
    except BaseException:
        _stop(process)
        raise
    finally:
        _running.remove((parent_run, process))
        ended.set()
        follower.join()
        run_lock.record_step(paths, "")
    if status != 0:
        raise (StageFailed if _exit_status(lines) == MENDABLE else StageDied)(_failure(label, lines, status))
    return lines


def _exit_status(lines: list[str]) -> int | None:
    """Return the exit status of the step, from the last lines of DVC's output; None where DVC itself failed."""
    for line in reversed(lines):
        if match := re.search(r"failed to run: .*, exited with (-?\d+)$", line.strip()):
            return int(match[1])
    return None


def _stop(process: StageProcess) -> None:
    """End DVC and the step below it; both are in a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        process.wait()


def _failure(label: str, lines: list[str], status: int) -> str:
    text = "\n".join(lines)
    first = text.find("error: ")
    message = text[first + len("error: ") :] if first >= 0 else "\n".join(lines[-12:])
    message = "\n".join(line for line in message.splitlines() if not line.startswith("ERROR: failed to reproduce"))
    killed = _exit_status(lines) in OUT_OF_MEMORY or status in OUT_OF_MEMORY
    hint = "\nIt was killed; the machine may have run out of memory." if killed else ""
    return f"step {label} failed: {message.strip()}{hint}"


def _follow(paths: ProjectPaths, label: str, runs: tuple[str, str], ended: threading.Event, log: Any) -> None:
    """Every two seconds: log new rows of curves to MLflow, and the total time left once it is known.

    A file of curves that an earlier training left is not this one's yet. `runs`: as in `_stream`.
    """
    parent_run, run_id = runs
    sent: dict[Path, int] = {}
    started = time.time()
    while True:
        last = ended.wait(FOLLOW_SECONDS)
        if not last and (line := time_left.first_line(parent_run)):
            log.info("%s", line)
        # A refit trains several networks, each in a folder of its own.
        for path in sorted(paths.checkpoints.glob(f"{label}-????????????????/**/*.curves.jsonl")):
            rows, known = _rows(path, started), sent.get(path, 0)
            if len(rows) > known:
                name = "/".join(path.relative_to(paths.checkpoints).parts[1:]).removesuffix(".curves.jsonl")
                prefix = "" if name in ("pretrain", "recovery") else name
                mlflow_runs.log_curves(paths, run_id, rows, known, prefix)
                sent[path] = len(rows)
        if last:
            return


def _rows(path: Path, since: float) -> list[dict[str, float]]:
    """Curves written so far; the file is replaced whole, but may vanish with its folder."""
    try:
        if path.stat().st_mtime < since:
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
