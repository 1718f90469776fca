"""One trial: its chain of candidates made in a folder of its own by the steps that make any candidate, then measured.

A first look trains a quarter of the epochs. Where an earlier trial of the same structure was both faster and, at its
own first look, more accurate by more than a point, and more than so many images can tell, this one is given up: it
would end behind it, too. Of another structure that is not known: a student that begins from random weights is points
behind a pruned network then, and level with it at the end. Trials that differ in int8 alone share the float network
that it is made from.

A trial that was trained to its end has to answer, where it is timed, as the file itself does, as in the benchmark. Its
accuracy is that of its answers there, in the runtime and precision in which its cost is measured.

A search tries dozens, so accuracy is counted on the half of validation that chooses (winnow/data/splits.py). The other
half sees the chosen trial alone (winnow/cli/search_results.py).

Cost is measured interleaved with dense on the same runtime and told as if dense took what it took at the search's
start, so that a clock that drifts moves no trial against another.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, ROOT, Config, check_config
from winnow.config.search import Structure
from winnow.data.dataset import ImageSet, load_images
from winnow.data.splits import choosing_half
from winnow.errors import ArtifactError, ConfigError, TrainingError
from winnow.evaluation.metrics import load_logits
from winnow.records import read_record, this_machine
from winnow.search.accuracy_loss import ANSWERS, keep_answers, lost, reference_logits
from winnow.search.cost import CostMeasurer
from winnow.search.space import Point, chain
from winnow.steps.compress import Folders, compress

log = logging.getLogger(__name__)

FIRST_LOOK = 4
"""Share of the epochs that the first look takes: one in so many."""
MARGIN_POINTS = 1.0


def machine_here() -> str:
    """What has to be the same for two costs to be compared."""
    return this_machine().identity


@dataclass(frozen=True)
class SearchContext:
    """What all trials share."""

    config: Config
    folders: Folders
    """data and pretrain of the project; candidates: the project's, for dense and dense-kd."""
    trials: Path
    """A folder for each trial is made here."""
    machine: str = field(default_factory=machine_here)
    """Where costs are measured; the figures of another one are refused."""
    overflow_safe: bool = False
    """Whether the machine that serves, or this one, needs int8 weights of 7 bits."""

    @property
    def references(self) -> dict[str, Path]:
        """Folders of dense and, where the tree has it, dense-kd: losses are counted against the better one."""
        names = [ROOT, CONTROL] if CONTROL in self.config.candidates else [ROOT]
        return {name: self.folders.candidates / name for name in names}

    def candidates_of(self, point: Point, epochs: int, name: str = "found") -> dict[str, dict[str, Any]]:
        """What a point is in params.yaml, the parent first."""
        return chain(point, self.config, epochs, name, self.overflow_safe)


@dataclass(frozen=True)
class TrialEvaluation:
    """What a look at a chain gave."""

    drop: float
    """Points lost against the better of dense and dense-kd, on the half of validation that chooses; changed answers in
    percent where there is no label."""
    high: float
    """Upper end of its 95 % interval."""
    cost: float
    metrics: Mapping[str, float]
    names: tuple[str, ...]
    """Candidates that were made, the parent first."""


@dataclass(frozen=True)
class Earlier:
    """A first look of an earlier trial."""

    structure: Structure
    drop: float
    cost: float


@dataclass(frozen=True)
class Result:
    """What became of a trial."""

    state: str
    """finished, given up, impossible."""
    why: str
    look: TrialEvaluation | None
    first: TrialEvaluation | None
    seconds: float


class TrialPruned(Exception):
    """The trial is worse than another at its first look; the message says which way."""

    def __init__(self, look: TrialEvaluation, why: str) -> None:
        super().__init__(why)
        self.look = look


def run_point(place: SearchContext, number: int, point: Point, earlier: Sequence[Earlier], dense_cost: float) -> Result:
    """Make and measure the point's chain, in this process; `dense_cost`: what dense costs in this search.

    Raises ConfigError on another machine than the search's, as costs of two are not compared, and where the objective
    cannot be measured.
    """
    if (here := machine_here()) != place.machine:
        raise ConfigError(f"costs of this search are measured on {place.machine}; this is {here}")
    meter = meter_of(place, dense_cost)
    began = time.monotonic()
    state, why = "finished", ""
    look: TrialEvaluation | None = None
    first: TrialEvaluation | None = None
    try:
        with _alone(place.trials / f"{number:04d}"):
            look, first = attempt(place, number, point, earlier, meter)
    except TrialPruned as end:
        look = first = end.look
        state, why = "given up", str(end)
    except (ConfigError, ArtifactError, TrainingError) as error:
        state, why = "impossible", str(error)
    return Result(state, why, look, first, time.monotonic() - began)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time works at a trial: a worker that was given up for dead may still be at it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def attempt(
    place: SearchContext, number: int, point: Point, earlier: Sequence[Earlier], meter: CostMeasurer
) -> tuple[TrialEvaluation, TrialEvaluation | None]:
    """Make and measure the point's chain -> (the whole look, the first one).

    Raises GivenUp after a first look that is not worth going on from.
    """
    settings = place.config.search
    short = max(1, settings.epochs // FIRST_LOOK)
    first = None
    if short < settings.epochs:
        log.info("first look: %d of %d epochs", short, settings.epochs)
        first = _look(place, number, point, short, meter)
        margin = max(MARGIN_POINTS, first.high - first.drop)
        alike = [one for one in earlier if one.structure == point.structure]
        better = [one for one in alike if one.cost < first.cost and one.drop < first.drop - margin]
        if better:
            told = (
                f"{first.drop:.1f} points lost after {short} epochs, and {len(better)} of this structure were faster "
                "and better then"
            )
            raise TrialPruned(first, told)
        log.info("worth going on: all %d epochs", settings.epochs)
    return _look(place, number, point, settings.epochs, meter), first


def tree_of(place: SearchContext, number: int, epochs: int) -> Path:
    """Where the candidates of a look lie; the whole one has as many epochs as the settings say."""
    return place.trials / f"{number:04d}" / f"epochs-{epochs}" / "candidates"


def _look(place: SearchContext, number: int, point: Point, epochs: int, meter: CostMeasurer) -> TrialEvaluation:
    tree = tree_of(place, number, epochs)
    home = tree.parent
    tree.mkdir(parents=True, exist_ok=True)
    _link(tree / ROOT, place.folders.candidates / ROOT)
    raw = place.config.model_dump(mode="json", by_alias=True)
    made = place.candidates_of(point, epochs)
    config = check_config(raw | {"candidates": made})
    names = tuple(made)

    def make(name: str, at: Path, scratch: Path) -> None:
        if not (at / name).exists():  # made before a stop, or by a trial that begins alike
            folders = Folders(place.folders.data, place.folders.pretrain, tree, scratch / name, place.folders.answers)
            compress(config, name, folders, at / name)
        shutil.rmtree(scratch, ignore_errors=True)

    shared = place.trials / "shared" / _digest(made[names[0]])
    with _alone(shared):
        make(names[0], shared, shared / "scratch")
    _link(tree / names[0], shared / names[0])
    for name in names[1:]:
        make(name, tree, home / "scratch")
    images = load_images(place.folders.data)
    record = read_record(tree / names[-1])
    if epochs == place.config.search.epochs:  # before that answers are too near to each other
        meter.check_answers(tree / names[-1], record.details["precision"], images)
    cost = meter.cost(tree / names[-1], record.details["precision"])
    answers_VC = meter.answers(tree / names[-1], record.details["precision"], images)
    keep_answers(home, answers_VC)
    drop = lost(reference_logits(place.references, images), answers_VC, images, choosing_half(images))
    return TrialEvaluation(drop.points, drop.high, cost, record.metrics, names)


def _link(here: Path, to: Path) -> None:
    """A relative link, so that a project may be moved; one that leads nowhere is made anew."""
    if not here.exists():
        here.unlink(missing_ok=True)
        here.symlink_to(os.path.relpath(to.resolve(), here.parent.resolve()))


def _digest(settings: Mapping[str, Any]) -> str:
    """Names a folder by what is made in it."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def meter_of(place: SearchContext, dense_cost: float | None = None) -> CostMeasurer:
    """The meter of a search; `dense_cost`: as it was measured when the search began."""
    return CostMeasurer(place.config, place.folders.candidates / ROOT, place.config.data.image_size, dense_cost)


def load_answers(place: SearchContext, number: int, images: ImageSet) -> NDArray[np.float32]:
    """Return what a trial that was trained to its end answers (V, C) where it is timed; `number`: of its folder."""
    return load_logits(tree_of(place, number, place.config.search.epochs).parent, images, ANSWERS)
