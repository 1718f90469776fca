"""The part of every candidate's record on its file: quality class by class, labels, precision and lineage."""

from __future__ import annotations

from typing import Literal

from winnow.records.model import RecordModel, optional


class ClassScores(RecordModel):
    """Precision, recall and F1 of one class as fractions, and its number of images."""

    precision: float
    """Share of the images predicted as this class that belong to it."""
    recall: float
    """Share of the images of this class that are predicted as it."""
    f1: float
    """Harmonic mean of precision and recall."""
    support: int
    """Number of images of this class."""


class ReliabilityBin(RecordModel):
    """One bin of the calibration error: mean confidence, accuracy and number of images."""

    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of correct predictions."""
    count: int
    """Number of images."""


class ClassDetails(RecordModel):
    """Quality class by class; empty without labelled images."""

    per_class: dict[str, ClassScores] = optional({})
    """Class -> scores."""
    confusion: list[list[int]] = optional([])
    """Number of images by true class (row) and predicted class (column)."""
    reliability: list[ReliabilityBin] = optional([])
    """Confidence and accuracy in bins of the confidence, from which the calibration error is computed."""


class LabelCounts(RecordModel):
    """Numbers of labelled images."""

    training: int
    """Number of labelled images that trained it."""
    choosing: int
    """Number of labelled validation images, which select."""
    choosing_groups: int | None = optional()
    """Number of groups of the labelled validation images; None without data.group_by."""


class CandidateFile(ClassDetails):
    """The measurements and labels that every candidate's record holds."""

    method: str
    """The compression method; finetune for dense."""
    precision: Literal["f32", "int8"]
    """Precision of the weights in the file."""
    lineage: list[str]
    """Names of all candidates from dense to this one."""
    labels: LabelCounts
    """Labels that trained it, and labels that select."""
