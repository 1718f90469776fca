"""`python -m tasks STEP [NAME]`: the command of every DVC stage. No Prefect and no MLflow: one step and its record.

    python -m tasks pretrain
    python -m tasks candidate pruned

An error that the user has to fix ends it with status 2 and one message (WINNOW_TRACEBACK=1 shows the traceback).
Checkpoints are in .winnow/checkpoints/, in a folder named after all that decides the result: the step's section of
params.yaml, the records that it reads and winnow's own code. A killed step resumes from them; a changed one starts
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import psutil
import yaml

from tasks.project import environment, run_lock
from tasks.project.disk_errors import describe_disk_error
from tasks.project.paths import ProjectPaths
from tasks.project.peak_memory import measure_peak_memory
from tasks.project.run_origin import is_alive
from tasks.project.state_files import STEP_TIMES, STEP_VERSIONS, StepTimes
from tasks.versioning import integrity
from tasks.versioning.dvc_stages import STARTER_VARIABLE
from winnow.config import ROOT, Config, load_config
from winnow.config.weights import weights_file
from winnow.errors import WinnowError
from winnow.printable import printable_text
from winnow.records import (
    AnyRecord,
    CandidateRecord,
    record_digest,
    sha256_of,
    this_machine,
)
from winnow.refit.deployed_folder import read_winner

WATCH_SECONDS = 1.0
log = logging.getLogger(__name__)
USAGE = "usage: python -m tasks {ingest|embed|pretrain|finetune|candidate NAME|benchmark|select|refit|report}"


def main(arguments: list[str]) -> int:
    """Run one step in the current folder, the project's root, and return the exit status."""
    paths = ProjectPaths(Path.cwd())
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    environment.silence_loggers()
    signal.signal(signal.SIGTERM, _exit)
    starter = os.environ.get(STARTER_VARIABLE)
    if starter:
        threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    try:
        environment.apply(paths.root)
        step, name = _parse(arguments)
        config = load_config(paths.root / "params.yaml")
        # A run holds the checkout for its steps; a step of `dvc repro` asks for it.
        with contextlib.nullcontext() if starter else run_lock.lock_step(paths):
            integrity.check(paths)
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
    scratch = paths.checkpoints / f"{name}-{_fingerprint(config, paths, step, name)}"
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


def _ingest(config: Config, paths: ProjectPaths, _name: str, _scratch: Path) -> AnyRecord:
    from winnow.steps.ingest import ingest

    return ingest(config, paths.artifacts / "data", paths.state_dir)


def _embed(config: Config, paths: ProjectPaths, _name: str, scratch: Path) -> AnyRecord:
    from winnow.steps.embed import embed

    return embed(config, paths.artifacts / "data", paths.artifacts / "embed", scratch, paths.weights)


def _pretrain(config: Config, paths: ProjectPaths, _name: str, scratch: Path) -> AnyRecord:
    from winnow.steps.pretrain import pretrain

    data, embedded = paths.artifacts / "data", paths.artifacts / "embed"
    return pretrain(config, data, paths.artifacts / "pretrain", scratch, embedded, paths.weights)


def _finetune(config: Config, paths: ProjectPaths, _name: str, scratch: Path) -> AnyRecord:
    from winnow.steps.finetune import finetune

    data, pretrained, embedded = (paths.artifacts / name for name in ("data", "pretrain", "embed"))
    return finetune(config, data, pretrained, paths.artifacts / "candidates" / ROOT, scratch, embedded)


def _candidate(config: Config, paths: ProjectPaths, name: str, scratch: Path) -> AnyRecord:
    from winnow.steps.compress import CandidateFolders, compress

    data, pretrained, candidates, embedded = (
        paths.artifacts / name for name in ("data", "pretrain", "candidates", "embed")
    )
    folders = CandidateFolders(data, pretrained, candidates, scratch, paths.answers, embedded)
    return compress(config, name, folders, candidates / name)


def _benchmark(config: Config, paths: ProjectPaths, _name: str, _scratch: Path) -> AnyRecord:
    from winnow.steps.benchmark import benchmark

    data, candidates = paths.artifacts / "data", paths.artifacts / "candidates"
    return benchmark(config, data, candidates, paths.artifacts / "benchmark")


def _select(config: Config, paths: ProjectPaths, _name: str, _scratch: Path) -> AnyRecord:
    from winnow.steps.select import select

    data, candidates, timed = (paths.artifacts / name for name in ("data", "candidates", "benchmark"))
    return select(config, data, candidates, timed, paths.artifacts / "select", paths.root)


def _refit(config: Config, paths: ProjectPaths, _name: str, scratch: Path) -> AnyRecord:
    from winnow.steps.refit import refit

    return refit(config, paths.artifacts, paths.artifacts / "refit", scratch)


def _report(config: Config, paths: ProjectPaths, _name: str, _scratch: Path) -> AnyRecord:
    from winnow.data.dataset import load_images
    from winnow.selection.test_readings import count_test_reading
    from winnow.steps.report import report

    count_test_reading(paths.test_readings, load_images(paths.artifacts / "data"))
    return report(config, paths.artifacts, paths.artifacts / "report")


RUNNERS: dict[str, Callable[[Config, ProjectPaths, str, Path], AnyRecord]] = {
    "ingest": _ingest,
    "embed": _embed,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "candidate": _candidate,
    "benchmark": _benchmark,
    "select": _select,
    "refit": _refit,
    "report": _report,
}
"""Step -> function that runs it on the project's folders, given the candidate's name and the folder of checkpoints. It
imports the step itself, so that a quick step does not wait for torch."""
STEPS = tuple(RUNNERS)


def code_of(root: Path, step: str, section: object) -> list[Path]:
    """Return the code files that decide a step's outcome: those that dvc.yaml lists for it.

    `section`: the candidate's settings, whose method is a file of its own.
    """
    stage = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][step]
    listed = [str(dep) for dep in stage.get("do", stage)["deps"]]
    method = getattr(section, "method", "")
    files = (dep.replace("${item.method}", method) for dep in listed)
    return sorted(root / file for file in files if file.endswith(".py"))


def _inputs(config: Config, artifacts: Path, step: str, name: str) -> list[Path]:
    """Return the folders whose records a training reads."""
    data, pretrain, dense = artifacts / "data", artifacts / "pretrain", artifacts / "candidates" / ROOT
    if step == "candidate":
        parent = config.candidates[name].parent if name in config.candidates else ROOT
        others = [artifacts / "candidates" / parent] if parent != ROOT else []
        return [data, artifacts / "embed", pretrain, dense, *others]
    if step == "refit":
        winner = read_winner(artifacts / "select")
        lineage = CandidateRecord.read(artifacts / "candidates" / winner).details.lineage if winner else [ROOT]
        return [data, pretrain, *(artifacts / "candidates" / ancestor for ancestor in lineage)]
    embedded = artifacts / "embed"
    folders = {"embed": [data], "pretrain": [data, embedded], "finetune": [data, embedded, pretrain]}
    return folders.get(step, [])


SECTIONS = {"embed": "teacher"}
"""Step -> section of params.yaml, where it has another name."""


def _fingerprint(config: Config, paths: ProjectPaths, step: str, name: str) -> str:
    """Return a digest of all that decides the outcome of a training: settings, inputs, code."""
    section: object = (
        config.candidates.get(name) if step == "candidate" else getattr(config, SECTIONS.get(step, step), None)
    )
    parts = [json.dumps([config.data.label_budget, repr(section), config.finetune.seeds[0]])]
    parts += [record_digest(folder) for folder in _inputs(config, paths.artifacts, step, name)]
    if step == "refit":
        parts.append(repr(config.finetune))
    weights = {"embed": config.teacher.weights, "pretrain": config.pretrain.start}.get(step, "")
    if file := weights_file(weights):
        parts.append(sha256_of(paths.root / file))
    if step in ("finetune", "refit"):
        parts.append(sha256_of(paths.root / config.finetune.weights))
    parts += [sha256_of(path) for path in code_of(paths.root, step, section)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
