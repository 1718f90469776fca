"""The tags of a run that follow from its record: lineage, known weights, machine and test split."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.tracking.tags import (
    CANDIDATE_TAG,
    DEVICE_TAG,
    LINEAGE_TAG,
    MACHINE_TAG,
    METHOD_TAG,
    PARENT_CANDIDATE_TAG,
    PRECISION_TAG,
    SELECTION_LABELS_TAG,
    TEST_BASELINE_TAG,
    TEST_RUNTIME_TAG,
    TEST_WARNING_TAG,
    TRAINING_LABELS_TAG,
    WEIGHTS_INPUT_SIZE_TAG,
    WEIGHTS_LICENCE_TAG,
    WEIGHTS_SHA256_TAG,
    WEIGHTS_TAG,
)
from winnow.records import EmbedDetails, Machine, PretrainDetails, RecordModel, ReportDetails
from winnow.records.candidate_file import CandidateFile

TAG_LENGTH = 8000
"""MLflow's limit of a tag in characters."""


def lineage_tags(candidate: CandidateFile) -> dict[str, str]:
    """Return the tags of a candidate: its parents, method, precision and labels."""
    lineage, labels = candidate.lineage, candidate.labels
    return {
        CANDIDATE_TAG: lineage[-1],
        PARENT_CANDIDATE_TAG: lineage[-2] if len(lineage) > 1 else "",
        LINEAGE_TAG: " > ".join(lineage),
        METHOD_TAG: candidate.method,
        PRECISION_TAG: candidate.precision,
        TRAINING_LABELS_TAG: str(labels.training),
        SELECTION_LABELS_TAG: str(labels.choosing),
    }


def weights_tags(details: RecordModel) -> dict[str, str]:
    """Return the tags of known weights, where the step began with them or embedded images by them."""
    weights = details.start if isinstance(details, PretrainDetails) else None
    if isinstance(details, EmbedDetails):
        weights = details.weights
    if weights is None:
        return {}
    return {
        WEIGHTS_TAG: weights.name,
        WEIGHTS_LICENCE_TAG: weights.licence,
        WEIGHTS_SHA256_TAG: weights.sha256,
        WEIGHTS_INPUT_SIZE_TAG: str(weights.input_size),
    }


def machine_tags(machine: Machine | None) -> dict[str, str]:
    """Return the tags of the machine that was measured; {} for records without times."""
    if machine is None:
        return {}
    return {MACHINE_TAG: machine.identity, DEVICE_TAG: machine.gpu or "cpu"}


def test_tags(report: ReportDetails, warnings: Sequence[str]) -> dict[str, str]:
    """Return the tags of the accuracy on the test split: baseline, runtime and warnings."""
    tags = {TEST_BASELINE_TAG: report.baseline, TEST_RUNTIME_TAG: report.measured_in}
    return tags | ({TEST_WARNING_TAG: "; ".join(warnings)[:TAG_LENGTH]} if warnings else {})
