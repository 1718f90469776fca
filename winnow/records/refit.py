"""Details of the record of refit."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.records.candidate_file import LabelCounts
from winnow.records.model import CurveRow, RecordModel
from winnow.records.step_record import StepRecord


class RefitLabels(LabelCounts):
    """Numbers of labels that trained the selected file, that selected, and that trained the deployed file."""

    deployed: int
    """Number of labels that trained the deployed file."""


@dataclass(frozen=True)
class RefitCheck:
    """The result of comparing a refitted file with the selected one."""

    images: int
    """Number of images that were compared."""
    kind: str
    """Kind of the images: "validation images without a label" or "training images"."""
    agreement: float
    """Share of the images with the same prediction."""
    kappa: float
    """Cohen's kappa: agreement corrected for chance."""
    gain_on_labels: float
    """Gain in accuracy on the learned labels, in points; biased towards the refitted file."""
    refusal: str
    """Reason why the refitted file is rejected; empty if it is accepted."""


class RefitDetails(RecordModel):
    """The result of the refit, or why there was none."""

    winner: str | None
    """Name of the winner; None where no candidate won."""
    is_refitted: bool
    """True where the refitted file is deployed."""
    why: str
    """Reason for the refit or against it."""
    labels: RefitLabels
    """Numbers of labels."""
    check: RefitCheck | None
    """Comparison of the refitted file with the selected one; None without a refit."""
    curves: list[CurveRow]
    """One row per epoch of the last training."""
    trainings: dict[str, list[CurveRow]]
    """Candidate -> one row per epoch of its training."""


RefitRecord = StepRecord[RefitDetails]
