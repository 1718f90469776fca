"""Details of the record of select: gates, verdicts, the winner, and the figures that decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from winnow.records.benchmark import BenchmarkRow, BestRows, MeasurementError
from winnow.records.machine import Machine
from winnow.records.model import RecordModel
from winnow.records.step_record import StepRecord

Route = Literal["labels", "answers"]


class Gate(RecordModel):
    """One condition for promotion; the reason states the value and the threshold."""

    name: str
    passed: bool
    reason: str
    needs: str = ""
    """The key of promotion.gates with the value at which a failed gate would pass, where that is known."""
    shown: bool = True
    """False where the gate did not pass only because the images are too few, or the timings too noisy, to decide it."""
    checked: bool = True
    """False where the value was not measured on the serving machine, as `reason` says. `passed` is then true."""


class Verdict(RecordModel):
    """The decision on one candidate."""

    candidate: str
    passed: bool
    gates: tuple[Gate, ...]
    on_front: bool
    """True where no other candidate is better in accuracy, size and latency at once."""


@dataclass(frozen=True)
class Drop:
    """The points that a child loses against its reference, with the ends of the interval."""

    points: float
    """Positive if the child is worse."""
    low: float
    high: float
    confidence: float = 0.95
    """Confidence of this interval alone."""


@dataclass(frozen=True)
class DropEvidence:
    """The evidence for one drop, in points."""

    labelled: Drop | None
    """The drop on the labelled images; None without labels."""
    answers: Drop
    """On all images: the share whose prediction differs (top-1), or the drop with the reference's predictions as truth
    (macro F1)."""
    route: Route = "labels"
    """Which of the two decides."""
    candidates: int = 1
    """Number of candidates compared at once: the intervals hold for all of them together with 95 % confidence."""
    unchanged: float = 0.0
    """Macro F1 only: upper end of the labelled interval of a child that changes no prediction."""
    images: int = 0
    """Number of images that decide: the labelled ones, or all."""
    groups: int | None = None
    """Number of groups of these images; None if every image is a group of its own."""
    rarest: str = ""
    """Macro F1 only: the class with the fewest labels and their number, such as "6 images of class '2c'"."""


class ControlGain(RecordModel):
    """The paired top-1 gain of a candidate over its control, in points."""

    bought_by: str
    candidate: str
    control: str
    points: float
    low: float
    high: float
    confidence: float


class ServingSpeeds(RecordModel):
    """Speeds on the machine that serves: this one, or that of benchmark.target."""

    machine: Machine
    is_target: bool
    """True where it is another machine than the one that ran the benchmark."""
    best: dict[str, BestRows]
    candidates: dict[str, dict[str, int | float]]
    """Candidate -> flat metrics, as in the benchmark."""
    measurement_error: list[MeasurementError]


class SelectionDetails(RecordModel):
    """The decision and its reasons."""

    verdicts: list[Verdict]
    """One per candidate but dense."""
    winner: str | None
    why: str
    front: list[str]
    reference: str
    """The stronger of dense and dense-kd, against which drops are measured."""
    competitors: int
    """Candidates that pass every gate on cost; the intervals of drops hold for all of them together."""
    route: Route
    drops: dict[str, DropEvidence]
    macro_f1_drops: dict[str, DropEvidence]
    agreement: dict[str, float]
    """Share of validation images answered like dense."""
    quality: dict[str, dict[str, float]]
    """Candidate -> quality/top1 and its interval, quality/macro_f1, quality/agreement and delta/top1, in the runtime
    and precision that would serve it. A candidate's own record holds them for its file in ONNX Runtime."""
    served: dict[str, BenchmarkRow | None]
    """Candidate -> the row by which it would serve; None where no runtime could be timed."""
    speeds: ServingSpeeds
    controls: list[ControlGain]

    def verdict(self, name: str) -> Verdict | None:
        """Return the verdict on a candidate; None for dense."""
        return next((verdict for verdict in self.verdicts if verdict.candidate == name), None)


SelectionRecord = StepRecord[SelectionDetails]
