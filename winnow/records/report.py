"""Details of the record of report: the evaluation on the test split."""

from __future__ import annotations

from winnow.records.candidate import ClassDetails
from winnow.records.model import RecordModel, optional
from winnow.records.step_record import StepRecord


class AbstentionCounts(RecordModel):
    """Answered and correct images at each threshold of confidence from 0.00 to 1.00."""

    images: int
    answered: list[int]
    right: list[int]


class Abstention(RecordModel):
    """The counts of the deployed file on both splits; None without labelled test images."""

    validation: AbstentionCounts | None = optional()
    test: AbstentionCounts | None = optional()


class ReportDetails(RecordModel):
    """The results on the test split."""

    test_version: str
    """Digest of the test images."""
    winner: str | None
    source: str
    test: dict[str, ClassDetails]
    """Candidate -> quality by class; empty without labelled test images."""
    baseline: str
    """The reference of the drop: dense or dense-kd."""
    measured_in: str
    """The runtime and precision in which the winner was evaluated."""
    fallback: str
    """Why the winner was not evaluated as it will be served; empty where it was."""
    disagreements: list[str]
    """Warnings that test and validation intervals of top-1 do not overlap."""
    abstention: Abstention


ReportRecord = StepRecord[ReportDetails]
