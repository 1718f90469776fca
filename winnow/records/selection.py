"""Details of the record of select: gates, verdicts, the winner, and the figures that decided."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Name of the gate: drop, macro-f1, agreement, size, speedup or int8."""
    passed: bool
    """True where the candidate passes this gate."""
    reason: str
    """The value and the threshold, in words."""
    needs: str = ""
    """The key of promotion.gates with the value at which a failed gate would pass; empty where that is not known."""
    shown: bool = True
    """False where the gate did not pass only because the images are too few, or the timings too noisy, to decide it."""
    checked: bool = True
    """False where the value was not measured on the serving machine, as `reason` says. `passed` is then true."""


class Verdict(RecordModel):
    """The decision on one candidate."""

    candidate: str
    """Name of the candidate."""
    passed: bool
    """True where the candidate passes all gates."""
    gates: tuple[Gate, ...]
    """Result of each gate."""
    on_front: bool
    """True where no other candidate is better in accuracy, size and latency at once."""

    @property
    def failed(self) -> list[Gate]:
        """Return the gates that the candidate does not pass."""
        return [gate for gate in self.gates if not gate.passed]


def nearest_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict with the fewest failed gates, the first of equals. Raises ValueError where there is none."""
    return min(verdicts, key=lambda verdict: len(verdict.failed))


@dataclass(frozen=True)
class Drop:
    """Points that a candidate loses against the reference, with the ends of the interval."""

    points: float
    """The loss; positive if the candidate is worse."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    confidence: float = 0.95
    """Confidence of this interval alone, as a fraction."""


@dataclass(frozen=True)
class DropEvidence:
    """The evidence for one drop, in points."""

    labelled: Drop | None
    """The drop on the labelled images; None without labels."""
    answers: Drop
    """On all images: the share whose prediction differs (top-1), or the drop with the reference's predictions as truth
    (macro F1)."""
    route: Route = "labels"
    """Which of the two decides: labels, or answers (predictions on all images)."""
    candidates: int = 1
    """Number of candidates compared at once: the intervals hold for all of them together with 95 % confidence."""
    unchanged: float = 0.0
    """Macro F1 only: upper end of the labelled interval of a candidate that changes no prediction."""
    images: int = 0
    """Number of images that decide: the labelled ones, or all."""
    groups: int | None = None
    """Number of groups of these images; None if every image is a group of its own."""
    rarest: str = ""
    """Macro F1 only: the class with the fewest labels and their number, such as "6 images of class '2c'"."""


class ControlGain(RecordModel):
    """Gain of a candidate over its control in points of top-1, paired on the same images."""

    bought_by: str
    """The difference in training: "training on" (longer) or "a teacher"."""
    candidate: str
    """Name of the candidate."""
    control: str
    """Name of the control."""
    points: float
    """The gain."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    confidence: float
    """Confidence of the interval, as a fraction."""


class ServingSpeeds(RecordModel):
    """Speeds on the machine that serves: this one, or that of benchmark.target."""

    machine: Machine
    """The machine."""
    is_target: bool
    """True where it is another machine than the one that ran the benchmark."""
    best: dict[str, BestRows]
    """Candidate -> its fastest rows."""
    candidates: dict[str, dict[str, int | float]]
    """Candidate -> flat metrics, as in the benchmark."""
    measurement_error: list[MeasurementError]
    """Differences between files with the same graph."""


class SelectionDetails(RecordModel):
    """The decision and its reasons."""

    verdicts: list[Verdict]
    """Decision on each candidate but dense."""
    winner: str | None
    """Name of the winner; None where no candidate won."""
    why: str
    """Reason for the selection, in words."""
    front: list[str]
    """Candidates on the Pareto front of accuracy, size and latency."""
    reference: str
    """The better of dense and dense-kd, from which drops are counted."""
    competitors: int
    """Number of candidates that pass the gates on size, speed and int8. The intervals hold for all of them together."""
    route: Route
    """What decides about drops: labels, or answers (predictions on all images)."""
    drops: dict[str, DropEvidence]
    """Candidate -> its drop of top-1."""
    macro_f1_drops: dict[str, DropEvidence]
    """Candidate -> its drop of macro F1."""
    agreement: dict[str, float]
    """Candidate -> share of validation images with the same prediction as dense."""
    quality: dict[str, dict[str, float]]
    """Candidate -> quality/top1 and its interval, quality/macro_f1, quality/agreement and delta/top1, in the runtime
    and precision that would serve it. A candidate's own record holds them for its file in ONNX Runtime."""
    served: dict[str, BenchmarkRow | None]
    """Candidate -> the row of the runtime that would serve it; None where no runtime could be timed."""
    speeds: ServingSpeeds
    """Speeds on the machine that serves."""
    controls: list[ControlGain]
    """Gains of candidates over their controls."""

    def verdict(self, name: str) -> Verdict | None:
        """Return the verdict on a candidate; None for dense."""
        return next((verdict for verdict in self.verdicts if verdict.candidate == name), None)


SelectionRecord = StepRecord[SelectionDetails]
