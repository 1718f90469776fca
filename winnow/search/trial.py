"""Run one trial: make its chain of candidates in its own folder with the ordinary steps, then measure it.

A short evaluation first trains a quarter of the epochs. The trial is given up where an earlier trial of the same
structure was faster and more accurate at its own short evaluation, by more than a point and more than that many images
can resolve: it would end behind it, too. Across structures this does not hold: a student that starts from random
weights is points behind a pruned network then, and level with it at the end. Trials that differ in int8 alone share
their float network.

A fully trained trial must answer, where it is timed, as the file itself does, as in the benchmark. Its accuracy is that
of those answers, in the runtime and precision in which its cost is measured.

A search tries dozens of candidates, so accuracy is counted on the half of validation that chooses
(winnow/data/splits.py). The other half is used for the chosen trial alone (winnow/cli/search_front.py).

Cost is measured interleaved with dense on the same runtime, and scaled to dense's cost at the start of the search, so
that a drifting clock moves no trial against another.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, ROOT, Config, check_config
from winnow.config.search import Structure
from winnow.data.dataset import ImageSet, load_images
from winnow.data.splits import selection_half
from winnow.errors import ArtifactError, ConfigError, TrainingError
from winnow.evaluation.metrics import load_logits
from winnow.records import CandidateRecord, this_machine
from winnow.search.cost import CostMeasurer
from winnow.search.space import Point, candidate_chain
from winnow.search.trial_accuracy import LOGITS_FILE, points_lost, reference_logits, save_logits
from winnow.steps.compress import CandidateFolders, compress

log = logging.getLogger(__name__)

SHORT_EVALUATION_SHARE = 4
"""The short evaluation trains one in this many epochs."""
MARGIN_POINTS = 1.0


def machine_identity() -> str:
    """Return what must be equal for two costs to be comparable."""
    return this_machine().identity


@dataclass(frozen=True)
class SearchContext:
    """The configuration, folders and machine that all trials of a search share."""

    config: Config
    folders: CandidateFolders
    """The project's data, pretrain and candidates folders; of the candidates, dense and dense-kd are read."""
    trials: Path
    """The folder in which each trial gets its own."""
    machine: str = field(default_factory=machine_identity)
    """The machine on which costs are measured; figures of another one are refused."""
    overflow_safe: bool = False
    """Whether the serving machine, or this one, needs int8 weights of 7 bits."""

    @property
    def references(self) -> dict[str, Path]:
        """Return the folders of dense and, where it is a candidate, dense-kd; losses are against the better one."""
        names = [ROOT, CONTROL] if CONTROL in self.config.candidates else [ROOT]
        return {name: self.folders.candidates / name for name in names}

    def candidates_of(self, point: Point, epochs: int, name: str = "found") -> dict[str, dict[str, Any]]:
        """Return the candidates of a point as in params.yaml, the parent first."""
        return candidate_chain(point, self.config, epochs, name, self.overflow_safe)


@dataclass(frozen=True)
class TrialEvaluation:
    """The figures of a chain after the short or the full training."""

    drop: float
    """Points lost against the better of dense and dense-kd, on the selecting half of validation; changed predictions in
    percent where there is no label.
    """
    high: float
    """The upper end of the drop's 95 % interval."""
    cost: float
    metrics: Mapping[str, float]
    names: tuple[str, ...]
    """The candidates of the chain, the parent first."""


@dataclass(frozen=True)
class EarlierTrial:
    """The short evaluation of an earlier trial."""

    structure: Structure
    drop: float
    cost: float


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial."""

    state: str
    """"finished", "given up" or "impossible"."""
    why: str
    evaluation: TrialEvaluation | None
    first: TrialEvaluation | None
    seconds: float


class TrialPruned(Exception):
    """The trial is worse than another at its short evaluation; the message says how."""

    def __init__(self, evaluation: TrialEvaluation, reason: str) -> None:
        super().__init__(reason)
        self.evaluation = evaluation


def run_point(
    context: SearchContext, number: int, point: Point, earlier: Sequence[EarlierTrial], dense_cost: float
) -> TrialResult:
    """Make and measure the point's chain in this process. `dense_cost`: dense's cost at the search's start.

    Raises ConfigError on another machine than the search's, since costs are not comparable across machines, and where
    the objective cannot be measured.
    """
    if (machine := machine_identity()) != context.machine:
        raise ConfigError(f"costs of this search are measured on {context.machine}; this is {machine}")
    measurer = make_cost_measurer(context, dense_cost)
    started = time.monotonic()
    state, reason = "finished", ""
    evaluation: TrialEvaluation | None = None
    short_evaluation: TrialEvaluation | None = None
    try:
        with _locked(context.trials / f"{number:04d}"):
            evaluation, short_evaluation = evaluate_chain(context, number, point, earlier, measurer)
    except TrialPruned as pruned:
        evaluation = short_evaluation = pruned.evaluation
        state, reason = "given up", str(pruned)
    except (ConfigError, ArtifactError, TrainingError) as error:
        state, reason = "impossible", str(error)
    return TrialResult(state, reason, evaluation, short_evaluation, time.monotonic() - started)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the trial's lock: a worker that was taken for dead may still be working on it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def evaluate_chain(
    context: SearchContext, number: int, point: Point, earlier: Sequence[EarlierTrial], measurer: CostMeasurer
) -> tuple[TrialEvaluation, TrialEvaluation | None]:
    """Make and measure the point's chain and return (full evaluation, short evaluation).

    Raises TrialPruned after a short evaluation that is not worth continuing.
    """
    settings = context.config.search
    short_epochs = max(1, settings.epochs // SHORT_EVALUATION_SHARE)
    short_evaluation = None
    if short_epochs < settings.epochs:
        log.info("short evaluation: %d of %d epochs", short_epochs, settings.epochs)
        short_evaluation = _evaluate(context, number, point, short_epochs, measurer)
        margin = max(MARGIN_POINTS, short_evaluation.high - short_evaluation.drop)
        comparable = [trial for trial in earlier if trial.structure == point.structure]
        better = [
            trial
            for trial in comparable
            if trial.cost < short_evaluation.cost and trial.drop < short_evaluation.drop - margin
        ]
        if better:
            reason = (
                f"{short_evaluation.drop:.1f} points lost after {short_epochs} epochs; earlier trials of this "
                f"structure that were faster and more accurate then: {len(better)}"
            )
            raise TrialPruned(short_evaluation, reason)
        log.info("continuing with all %d epochs", settings.epochs)
    return _evaluate(context, number, point, settings.epochs, measurer), short_evaluation


def candidates_folder(context: SearchContext, number: int, epochs: int) -> Path:
    """Return the folder of a trial's candidates; the full evaluation has `search.epochs` epochs."""
    return context.trials / f"{number:04d}" / f"epochs-{epochs}" / "candidates"


def _evaluate(
    context: SearchContext, number: int, point: Point, epochs: int, measurer: CostMeasurer
) -> TrialEvaluation:
    candidates = candidates_folder(context, number, epochs)
    folder = candidates.parent
    candidates.mkdir(parents=True, exist_ok=True)
    _link(candidates / ROOT, context.folders.candidates / ROOT)
    raw = context.config.model_dump(mode="json", by_alias=True)
    chain_settings = context.candidates_of(point, epochs)
    config = check_config(raw | {"candidates": chain_settings})
    names = tuple(chain_settings)

    def make(name: str, parent_folder: Path, scratch: Path) -> None:
        if not (parent_folder / name).exists():  # made before a stop, or by a trial with the same parent
            folders = replace(context.folders, candidates=candidates, scratch=scratch / name)
            compress(config, name, folders, parent_folder / name)
        shutil.rmtree(scratch, ignore_errors=True)

    shared = context.trials / "shared" / _digest(chain_settings[names[0]])
    with _locked(shared):
        make(names[0], shared, shared / "scratch")
    _link(candidates / names[0], shared / names[0])
    for name in names[1:]:
        make(name, candidates, folder / "scratch")
    images = load_images(context.folders.data)
    record = CandidateRecord.read(candidates / names[-1])
    if epochs == context.config.search.epochs:  # a short training leaves close logits, whose order changes by rounding
        measurer.check_answers(candidates / names[-1], record.details.precision, images)
    cost = measurer.cost(candidates / names[-1], record.details.precision)
    answers_VC = measurer.answers(candidates / names[-1], record.details.precision, images)
    save_logits(folder, answers_VC)
    drop = points_lost(reference_logits(context.references, images), answers_VC, images, selection_half(images))
    return TrialEvaluation(drop.points, drop.high, cost, record.metrics, names)


def _link(link: Path, target: Path) -> None:
    """Make a relative link, so that a project may be moved; a broken one is replaced."""
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))


def _digest(settings: Mapping[str, Any]) -> str:
    """Return a folder name for a candidate's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def make_cost_measurer(context: SearchContext, dense_cost: float | None = None) -> CostMeasurer:
    """Return the search's cost measurer. `dense_cost`: as measured at the search's start; None measures it."""
    return CostMeasurer(context.config, context.folders.candidates / ROOT, context.config.data.image_size, dense_cost)


def load_trial_logits(context: SearchContext, number: int, images: ImageSet) -> NDArray[np.float32]:
    """Return the logits (V, C) of a fully trained trial where it is timed. `number`: of its folder."""
    return load_logits(candidates_folder(context, number, context.config.search.epochs).parent, images, LOGITS_FILE)
