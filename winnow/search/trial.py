"""One trial: its chain of candidates made in a folder of its own by the steps that make any candidate, then measured.

A first look trains a quarter of the epochs. Where an earlier trial was both faster and, at its own first look, more
accurate by more than a point, this one is given up: it would end behind it, too.

Cost is measured interleaved with dense on the same runtime and told as if dense took what it took at the search's
start, so that a clock that drifts moves no trial against another.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, ROOT, Config, check_config
from winnow.controls import better_reference
from winnow.data.images import VALIDATION, ImageSet, load_images
from winnow.energy import joules
from winnow.errors import ArtifactError, ConfigError, TrainingError
from winnow.evaluation import load_logits, right_answers
from winnow.evidence import losses
from winnow.intervals import Drop
from winnow.machine import cores
from winnow.model_file import MODEL
from winnow.quiet import quiet_machine
from winnow.records import RECORD, read_record, this_machine
from winnow.runtimes import Cell, Precision, Predict, open_cell
from winnow.search.space import Point, chain
from winnow.steps.compress import Folders, compress
from winnow.timing import timed_in_turns

log = logging.getLogger(__name__)

FIRST_LOOK = 4
"""Share of the epochs that the first look takes: one in so many."""
MARGIN_POINTS = 1.0
VISITS, CALLS_SINGLE, CALLS_LARGE = 5, 40, 3
ENERGY_CALLS = 200


def machine_here() -> str:
    """What has to be the same for two costs to be compared."""
    here = this_machine()
    return f"{here.cpu}, {here.threads} threads, {' '.join(here.flags)}"


@dataclass(frozen=True)
class Workplace:
    """What all trials share."""

    config: Config
    folders: Folders
    """data and pretrain of the project; candidates: the project's, for dense and dense-kd."""
    trials: Path
    """A folder for each trial is made here."""
    machine: str = field(default_factory=machine_here)
    """Where costs are measured; the figures of another one are refused."""


@dataclass(frozen=True)
class Look:
    """What a look at a chain gave."""

    drop: float
    """Points lost against the better of dense and dense-kd; changed answers in percent where there is no label."""
    cost: float
    metrics: Mapping[str, float]
    names: tuple[str, ...]
    """Candidates that were made, the parent first."""


@dataclass(frozen=True)
class Earlier:
    """A first look of an earlier trial."""

    drop: float
    cost: float


@dataclass(frozen=True)
class Result:
    """What became of a trial."""

    state: str
    """finished, given up, impossible."""
    why: str
    look: Look | None
    first: Look | None
    seconds: float


class GivenUp(Exception):
    """The trial is worse than another at its first look; the message says which way."""

    def __init__(self, look: Look, why: str) -> None:
        super().__init__(why)
        self.look = look


def run_point(place: Workplace, number: int, point: Point, earlier: Sequence[Earlier], dense_cost: float) -> Result:
    """Make and measure the point's chain, in this process; `dense_cost`: what dense costs in this search.

    Raises ConfigError on another machine than the search's: costs of two are not compared.
    """
    if (here := machine_here()) != place.machine:
        raise ConfigError(f"costs of this search are measured on {place.machine}; this is {here}")
    began = time.monotonic()
    state, why = "finished", ""
    look: Look | None = None
    first: Look | None = None
    try:
        with _alone(place.trials / f"{number:04d}"):
            look, first = attempt(place, number, point, earlier, meter_of(place, dense_cost))
    except GivenUp as end:
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
    place: Workplace, number: int, point: Point, earlier: Sequence[Earlier], meter: Meter
) -> tuple[Look, Look | None]:
    """Make and measure the point's chain -> (the whole look, the first one).

    Raises GivenUp after a first look that is not worth going on from.
    """
    settings = place.config.search
    short = max(1, settings.epochs // FIRST_LOOK)
    first = None
    if short < settings.epochs:
        first = _look(place, number, point, short, meter)
        better = [one for one in earlier if one.cost < first.cost and one.drop < first.drop - MARGIN_POINTS]
        if better:
            told = f"{first.drop:.1f} points lost after {short} epochs, and {len(better)} were faster and better then"
            raise GivenUp(first, told)
    return _look(place, number, point, settings.epochs, meter), first


def tree_of(place: Workplace, number: int, epochs: int) -> Path:
    """Where the candidates of a look lie; the whole one has as many epochs as the settings say."""
    return place.trials / f"{number:04d}" / f"epochs-{epochs}" / "candidates"


def _look(place: Workplace, number: int, point: Point, epochs: int, meter: Meter) -> Look:
    tree = tree_of(place, number, epochs)
    home = tree.parent
    tree.mkdir(parents=True, exist_ok=True)
    dense = tree / ROOT
    if not dense.exists():
        dense.symlink_to((place.folders.candidates / ROOT).resolve())
    raw = place.config.model_dump(mode="json", by_alias=True)
    made = chain(point, place.config.search, epochs)
    config = check_config(raw | {"candidates": made})
    for name in made:
        if not (tree / name).exists():  # made before a stop
            scratch, answers = home / "scratch" / name, place.folders.answers
            folders = Folders(place.folders.data, place.folders.pretrain, tree, scratch, answers)
            compress(config, name, folders, tree / name)
    shutil.rmtree(home / "scratch", ignore_errors=True)
    names = tuple(made)
    images = load_images(place.folders.data)
    record = read_record(tree / names[-1])
    cost = meter.cost(tree / names[-1], record.details["precision"])
    return Look(points_lost(tree / names[-1], place, images), cost, record.metrics, names)


def points_lost(candidate: Path, place: Workplace, images: ImageSet) -> float:
    """Top-1 below the better of dense and, where it is there, dense-kd; without labels the answers that change, %."""
    return lost(reference_logits(place, images), candidate, images).points


def reference_logits(place: Workplace, images: ImageSet) -> NDArray[np.float32]:
    """Of the better of dense and, where it is there, dense-kd."""
    references = {ROOT: place.folders.candidates / ROOT, CONTROL: place.folders.candidates / CONTROL}
    known = {name: load_logits(at, images) for name, at in references.items() if (at / RECORD).is_file()}
    return known[better_reference(right_answers(known, images))]


def lost(reference_VC: NDArray[np.float32], candidate: Path, images: ImageSet) -> Drop:
    """Points of top-1 lost, paired, with their interval; where no image has a label, answers that change."""
    labels_V = images.labels_N[images.indices(VALIDATION)]
    top1 = losses(reference_VC, load_logits(candidate, images), labels_V).top1
    return top1.labelled or top1.answers


def meter_of(place: Workplace, dense_cost: float | None = None) -> Meter:
    """The meter of a search; `dense_cost`: as it was measured when the search began."""
    return Meter(place.config, place.folders.candidates / ROOT, place.config.data.image_size, dense_cost)


class Meter:
    """Measures a file's cost beside dense's, by the objective that is set."""

    def __init__(self, config: Config, dense: Path, image_size: int, dense_cost: float | None = None) -> None:
        self.settings = config.search
        self.batch = config.benchmark.large_batch if self.settings.objective == "throughput" else 1
        self.pixels_NHWC = np.random.default_rng(0).integers(0, 256, (self.batch, image_size, image_size, 3), np.uint8)
        self.dense = dense
        self.reference = self._open(dense, "f32")
        self.dense_ms = 0.0 if dense_cost is None else self._ms_of(dense_cost)
        if not self.dense_ms and self.settings.objective in ("latency", "throughput"):
            self.dense_ms = self._ms(self.reference)
        if self.settings.objective == "energy" and joules(lambda: None) is None:
            raise ConfigError(
                "search.objective: energy cannot be read here (no powercap counter that may be read); use latency"
            )

    def cost(self, folder: Path, precision: Precision) -> float:
        """ms a call, seconds an image of a large batch, MB, or mJ an image: the less the better."""
        act: dict[str, Callable[[], float]] = {
            "latency": lambda: self._ms(self._open(folder, precision)),
            "throughput": lambda: self._ms(self._open(folder, precision)) / 1e3 / self.batch,
            "size": lambda: (folder / MODEL).stat().st_size / 1e6,
            "energy": lambda: self._millijoules(self._open(folder, precision)),
        }
        return act[self.settings.objective]()

    def _ms_of(self, cost: float) -> float:
        """Milliseconds a call of a cost; 0 where the objective is no time."""
        return {"latency": cost, "throughput": cost * 1e3 * self.batch}.get(self.settings.objective, 0.0)

    def _open(self, folder: Path, precision: Precision) -> Predict:
        cell = Cell(folder.name, self.settings.runtime, precision, "file", self.batch, cores())
        return open_cell(folder, cell)

    def _ms(self, predict: Predict) -> float:
        """p50 of a call, as if dense took what it took at first."""
        calls = CALLS_SINGLE if self.batch == 1 else CALLS_LARGE
        own, dense = timed_in_turns(predict, self.reference, self.pixels_NHWC, calls, VISITS)
        return own / dense * self.dense_ms if self.dense_ms else own

    def _millijoules(self, predict: Predict) -> float:
        def answer() -> None:
            for _ in range(ENERGY_CALLS):
                predict(self.pixels_NHWC)

        with quiet_machine():
            predict(self.pixels_NHWC)
            taken = joules(answer)
        assert taken is not None
        return taken / ENERGY_CALLS / self.batch * 1e3


def describe_cost(settings: Any, cost: float) -> str:
    """For people."""
    if settings.objective == "throughput":
        return f"{1 / cost:,.0f} images/s"
    unit = {"latency": "ms", "size": "MB", "energy": "mJ an image"}[settings.objective]
    return f"{cost:.3g} {unit}"
