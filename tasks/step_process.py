"""One step of the chain as a process of its own: `python -m tasks STEP [NAME]`. No Prefect and no MLflow.

An error that the user has to fix ends it with status 2 and one message (WINNOW_TRACEBACK=1 shows the traceback).
Checkpoints are in .winnow/checkpoints/, in a folder named after all that decides the result
(tasks/step_fingerprint.py). A killed step resumes from them; a changed one starts again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import psutil

from tasks.project import environment, run_lock
from tasks.project.disk_errors import describe_disk_error
from tasks.project.paths import ProjectPaths
from tasks.project.peak_memory import measure_peak_memory
from tasks.project.run_origin import is_alive
from tasks.project.state_files import STEP_TIMES, STEP_VERSIONS, StepTimes
from tasks.step_fingerprint import step_fingerprint
from tasks.step_runners import RUNNERS, STEPS
from tasks.versioning import dvc_stages, installed_code, integrity
from winnow.config import Config, load_config
from winnow.errors import WinnowError
from winnow.printable import printable_text
from winnow.records import AnyRecord, this_machine

WATCH_SECONDS = 1.0
log = logging.getLogger(__name__)
USAGE = "usage: python -m tasks {ingest|embed|pretrain|finetune|candidate NAME|benchmark|select|refit|report}"


def main(arguments: list[str]) -> int:
    """Run one step in the current folder, the project's root, and return the exit status."""
    paths = ProjectPaths(Path.cwd())
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    environment.silence_loggers()
    signal.signal(signal.SIGTERM, _exit)
    starter = os.environ.get(dvc_stages.STARTER_VARIABLE)
    if starter:
        threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    try:
        environment.apply(paths.root)
        step, name = _parse(arguments)
        config = load_config(paths.root / "params.yaml")
        if step == "candidate" and name not in config.candidates:
            raise WinnowError(f"params.yaml has no candidate {name!r}; it has {', '.join(config.candidates)}")
        # A run holds the checkout for its steps; a step of `dvc repro` asks for it.
        with contextlib.nullcontext() if starter else run_lock.lock_step(paths):
            integrity.check(paths)
            installed_code.check(
                paths.root, config, dvc_stages.CANDIDATE_PREFIX + name if step == "candidate" else step
            )
            run_step(config, paths, step, name)
    except Exception as error:
        message = str(error) if isinstance(error, WinnowError) else describe_disk_error(error, paths.root)
        if message is None or os.environ.get("WINNOW_TRACEBACK"):
            raise
        print(printable_text(f"error: {message}"), file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _exit(_signal: int, _frame: FrameType | None) -> None:
    """Exit in the ordinary way, so that half-written folders are removed."""
    raise SystemExit(143)


def _end_with(starter: str) -> None:
    """End this step once the flow that started it has ended: the next run resumes from its checkpoint."""
    while is_alive(starter):
        time.sleep(WATCH_SECONDS)
    log.warning("the run that started this step has ended, so the step ends; the next run resumes from its checkpoint")
    os.kill(os.getpid(), signal.SIGTERM)


def _parse(arguments: list[str]) -> tuple[str, str]:
    if len(arguments) == 2 and arguments[0] == "candidate":
        return "candidate", arguments[1]
    if len(arguments) == 1 and arguments[0] in STEPS and arguments[0] != "candidate":
        return arguments[0], arguments[0]
    raise WinnowError(USAGE)


def run_step(config: Config, paths: ProjectPaths, step: str, name: str) -> AnyRecord:
    """Run a step on the project's folders; its checkpoints are removed once it has ended well.

    Checkpoints of a training with other settings are deleted first, so that their curves are not shown instead.
    """
    scratch = paths.checkpoints / f"{name}-{step_fingerprint(config, paths, step, name)}"
    for folder in paths.checkpoints.glob(f"{name}-????????????????"):
        if folder != scratch:
            shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    with measure_peak_memory() as peak:
        record = RUNNERS[step](config, paths, name, scratch)
    seconds = time.monotonic() - started
    shutil.rmtree(scratch, ignore_errors=True)
    times: StepTimes = {
        "step": seconds,
        "process": time.time() - psutil.Process().create_time(),
        "memory_mb": peak.mb,
        "disk_mb": sum(artifact.bytes for artifact in record.artifacts) / 1e6,
    }
    STEP_VERSIONS.write(paths, this_machine().versions, name)
    STEP_TIMES.write(paths, times, name)
    for warning in record.warnings:
        log.warning("warning: %s", warning)
    return record
