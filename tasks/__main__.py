"""`python -m tasks STEP [NAME]`: what a DVC stage runs. No Prefect, no MLflow; one step, its record, its exit status.

    python -m tasks pretrain
    python -m tasks candidate pruned

Exit status 2 and one message without a traceback for everything a person has to mend (WINNOW_TRACEBACK=1 shows it).
Checkpoints lie in .winnow/checkpoints/, in a folder named after what decides the result: the step's section of
params.yaml, the records that it reads and winnow's own code. A killed step goes on there; a changed one starts anew.
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

from tasks.project import paths, run_lock
from tasks.project.disk_errors import disk_problem
from tasks.project.peak_memory import watched
from tasks.project.run_origin import is_alive
from tasks.versioning import integrity
from tasks.versioning.dvc_stages import WATCHED
from winnow.config import ROOT, Config, load_config
from winnow.errors import WinnowError
from winnow.printable import printable_text
from winnow.records import (
    StepRecord,
    read_json,
    read_record,
    record_digest,
    sha256_of,
    this_machine,
    write_json,
)
from winnow.refit.deployed_folder import WINNER

WATCH_SECONDS = 1.0
STEPS = ("ingest", "pretrain", "finetune", "benchmark", "select", "refit", "report")
"""Those that `python -m tasks` takes by name alone."""
USAGE = "usage: python -m tasks {ingest|pretrain|finetune|candidate NAME|benchmark|select|refit|report}"


def main(arguments: list[str]) -> int:
    """Run one step in the current folder, the project's root."""
    places = paths.ProjectPaths(Path.cwd())
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    paths.quieten()
    signal.signal(signal.SIGTERM, _leave)
    starter = os.environ.get(WATCHED)
    if starter:
        threading.Thread(target=_watch, args=(starter,), daemon=True).start()
    try:
        paths.apply(places.root)
        step, name = _parse(arguments)
        config = load_config(places.root / "params.yaml")
        # A run holds the checkout for its steps; a step of `dvc repro` asks for it.
        with contextlib.nullcontext() if starter else run_lock.step_alone(places):
            integrity.check(places)
            run_step(config, places, step, name)
    except WinnowError as error:
        if os.environ.get("WINNOW_TRACEBACK"):
            raise
        return _failed(str(error))
    except Exception as error:
        told = disk_problem(error, places.root)
        if told is None or os.environ.get("WINNOW_TRACEBACK"):
            raise
        return _failed(told)
    return 0


def _failed(told: str) -> int:
    print(printable_text(f"error: {told}"), file=sys.stderr)  # noqa: T201
    return 2


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """An ordinary exit, so that half-written folders are removed on the way out."""
    raise SystemExit(143)


def _watch(starter: str) -> None:
    """End politely when the flow that started this step is gone: whoever takes its run up goes on from here."""
    while is_alive(starter):
        time.sleep(WATCH_SECONDS)
    logging.getLogger(__name__).warning("the run that started this step is gone, so it ends; the next one goes on here")
    os.kill(os.getpid(), signal.SIGTERM)


def _parse(arguments: list[str]) -> tuple[str, str]:
    if len(arguments) == 2 and arguments[0] == "candidate":
        return "candidate", arguments[1]
    if len(arguments) == 1 and arguments[0] in STEPS:
        return arguments[0], arguments[0]
    raise WinnowError(USAGE)


def run_step(config: Config, places: paths.ProjectPaths, step: str, name: str) -> StepRecord:
    """Run a step on the project's folders; its checkpoints are removed once it has ended well.

    Those of a training that was given up go first: whoever follows the step's curves would take them for its own.
    """
    scratch = places.checkpoints / f"{name}-{_fingerprint(config, places, step, name)}"
    for folder in places.checkpoints.glob(f"{name}-????????????????"):
        if folder != scratch:
            shutil.rmtree(folder, ignore_errors=True)
    act = _call(config, places, step, name, scratch)
    began = time.monotonic()
    with watched() as peak:
        record = act()
    seconds = time.monotonic() - began
    shutil.rmtree(scratch, ignore_errors=True)
    times = {
        "step": seconds,
        "process": time.time() - psutil.Process().create_time(),
        "memory_mb": peak.mb,
        "disk_mb": sum(artifact.bytes for artifact in record.artifacts) / 1e6,
    }
    for kind, told in (("versions", this_machine().versions), ("times", times)):
        (places.state_dir / kind).mkdir(parents=True, exist_ok=True)
        write_json(places.state_dir / kind / f"{name}.json", told)
    for warning in record.warnings:
        logging.getLogger(__name__).warning("warning: %s", warning)
    return record


def _call(config: Config, places: paths.ProjectPaths, step: str, name: str, scratch: Path) -> Callable[[], StepRecord]:
    """The step's function with its folders. Imported here, so that a quick step does not wait for torch."""
    at = places.artifacts
    data, candidates = at / "data", at / "candidates"
    if step == "ingest":
        from winnow.steps.ingest import ingest

        return lambda: ingest(config, data, places.state_dir)
    if step == "pretrain":
        from winnow.steps.pretrain import pretrain

        return lambda: pretrain(config, data, at / "pretrain", scratch)
    if step == "finetune":
        from winnow.steps.finetune import finetune

        return lambda: finetune(config, data, at / "pretrain", candidates / ROOT, scratch)
    if step == "candidate":
        from winnow.steps.compress import Folders, compress

        folders = Folders(data, at / "pretrain", candidates, scratch, places.answers)
        return lambda: compress(config, name, folders, candidates / name)
    if step == "benchmark":
        from winnow.steps.benchmark import benchmark

        return lambda: benchmark(config, data, candidates, at / "benchmark")
    if step == "select":
        from winnow.steps.select import select

        return lambda: select(config, data, candidates, at / "benchmark", at / "select", places.root)
    if step == "refit":
        from winnow.steps.refit import refit

        return lambda: refit(config, at, at / "refit", scratch)
    from winnow.steps.report import report

    return lambda: report(config, at, places.test_readings, at / "report")


def code_of(root: Path, step: str, section: object) -> list[Path]:
    """Return the files of code that decide a step's outcome: those that dvc.yaml names for it.

    `section`: the candidate's settings, whose method is a file of its own.
    """
    stage = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][step]
    named = [str(dep) for dep in stage.get("do", stage)["deps"]]
    method = getattr(section, "method", "")
    filled = (dep.replace("${item.method}", method) for dep in named)
    return sorted(root / dep for dep in filled if dep.endswith(".py"))


def _fingerprint(config: Config, places: paths.ProjectPaths, step: str, name: str) -> str:
    """Digest of all that decides the outcome of a training: params, inputs, code."""
    at = places.artifacts
    inputs = {
        "pretrain": [at / "data"],
        "finetune": [at / "data", at / "pretrain"],
        "candidate": [at / "data", at / "candidates" / ROOT],
    }.get(step, [])
    if step == "refit":
        winner = read_json(at / "select" / WINNER)["winner"]
        lineage = read_record(at / "candidates" / winner).details["lineage"] if winner else [ROOT]
        inputs = [at / "data", at / "pretrain", *(at / "candidates" / name for name in lineage)]
    section: object = config.candidates.get(name) if step == "candidate" else getattr(config, step, None)
    parent = config.candidates[name].parent if step == "candidate" and name in config.candidates else ROOT
    if parent != ROOT:
        inputs.append(at / "candidates" / parent)
    parts = [json.dumps([config.data.label_budget, repr(section), config.finetune.seeds[0]])]
    parts += [record_digest(folder) for folder in inputs]
    if step == "refit":
        parts.append(repr(config.finetune))
    if step in ("finetune", "refit"):
        parts.append(sha256_of(places.root / config.finetune.weights))
    parts += [sha256_of(path) for path in code_of(places.root, step, section)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
