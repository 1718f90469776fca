"""Details of the record of refit."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.records.candidate import LabelCounts
from winnow.records.model import CurveRow, RecordModel
from winnow.records.step_record import StepRecord


class RefitLabels(LabelCounts):
    """Labels that trained the selection, that chose, and that trained the deployed file."""

    deployed: int


@dataclass(frozen=True)
class RefitCheck:
    """The result of comparing a refitted file with the selected one."""

    images: int
    kind: str
    """Kind of the images: "validation images without a label" or "training images"."""
    agreement: float
    kappa: float
    gain_on_labels: float
    """Gain in accuracy on the learned labels, in points; biased towards the refitted file."""
    refusal: str
    """Reason why the refitted file is rejected; empty if it is accepted."""


class RefitDetails(RecordModel):
    """The result of the refit, or why there was none."""

    winner: str | None
    is_refitted: bool
    why: str
    labels: RefitLabels
    check: RefitCheck | None
    curves: list[CurveRow]
    """The curves of the network that was trained last."""
    trainings: dict[str, list[CurveRow]]


RefitRecord = StepRecord[RefitDetails]
