"""Details of the record of report: the evaluation on the test split."""

from __future__ import annotations

from winnow.records.candidate_file import ClassDetails
from winnow.records.model import RecordModel, optional
from winnow.records.step_record import StepRecord


class AbstentionCounts(RecordModel):
    """Numbers of answered and correct images at each threshold of confidence."""

    images: int
    """Number of labelled images."""
    answered: list[int]
    """Number of images with at least this confidence, for thresholds 0.00, 0.01, ... 1.00."""
    right: list[int]
    """Number of these that are predicted correctly."""


class Abstention(RecordModel):
    """The counts of the deployed file on both splits; None without labelled test images."""

    validation: AbstentionCounts | None = optional()
    """Counts on the validation split."""
    test: AbstentionCounts | None = optional()
    """Counts on the test split."""


class ReportDetails(RecordModel):
    """The results on the test split."""

    test_version: str
    """Digest of the test images."""
    winner: str | None
    """Name of the winner; None where no candidate won."""
    source: str
    """Name of the data set."""
    test: dict[str, ClassDetails]
    """Candidate -> scores per class on the test split; empty without labelled test images."""
    baseline: str
    """The candidate from which the drop is counted: dense or dense-kd."""
    measured_in: str
    """The runtime and precision in which the winner was evaluated."""
    fallback: str
    """Reason why the winner was not measured in the runtime that serves; empty where it was."""
    disagreements: list[str]
    """Warnings about top-1 intervals of test and validation that do not overlap."""
    abstention: Abstention
    """Answered and correct images by threshold of confidence."""


ReportRecord = StepRecord[ReportDetails]
