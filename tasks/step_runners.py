"""Run each step on the project's folders: the library's function, with its inputs and its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.config import ROOT, Config
from winnow.records import AnyRecord


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
