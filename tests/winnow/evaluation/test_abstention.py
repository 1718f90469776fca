from __future__ import annotations

import numpy as np

from tasks.registry.deployment_card import accuracy_tags
from tasks.tracking.tags import ACCURACY_TAG, TEST_WARNING_TAG
from tests.records import deployment_card
from winnow.cli.predict import _describe_abstention
from winnow.evaluation.abstention import (
    abstention_counts,
    counts_at_threshold,
    describe_counts,
    overconfidence_warnings,
)
from winnow.records.report import Abstention

PROBABILITIES = np.array([[0.95, 0.05], [0.85, 0.15], [0.7, 0.3], [0.4, 0.6]])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def test_answered_and_correct_counts_at_every_threshold() -> None:
    counts = abstention_counts(LOGITS, np.array([0, 1, 0, 1]), 1.0)
    assert counts_at_threshold(counts, 0.0) == (4, 3)
    assert counts_at_threshold(counts, 0.65) == (3, 2)
    assert counts_at_threshold(counts, 0.8) == (2, 1)
    assert counts_at_threshold(counts, 0.9) == (1, 1)
    assert counts_at_threshold(counts, 1.0) == (0, 0)
    assert describe_counts(counts, 0.8, "test") == "2 of 4 test images answered, 50.0 % of them correctly"
    assert describe_counts(counts, 1.0, "test") == "0 of 4 test images answered"
    assert counts_at_threshold(abstention_counts(LOGITS, np.array([0, 1, 0, 1]), 4.0), 0.8) == (
        0,
        0,
    )  # a high temperature lowers the confidence


def test_significant_overconfidence_is_warned_of() -> None:
    confident = np.repeat(LOGITS[:1], 200, axis=0)
    labels = (np.arange(200) < 80).astype(np.int64)
    warnings = overconfidence_warnings("dense", confident, labels, 1.0)
    assert "dense predicts 200 of 200 test images with 80% confidence or more, and 60.0 % of these" in warnings[0]
    assert overconfidence_warnings("dense", confident, np.zeros(200, np.int64), 1.0) == []
    assert (
        overconfidence_warnings("dense", confident, labels, 1.0, np.arange(200) % 4) == []
    )  # four groups show nothing
    assert overconfidence_warnings("dense", confident, labels, 50.0) == []


def test_the_measured_abstention_is_described() -> None:
    counts = abstention_counts(LOGITS, np.array([0, 1, 0, 1]), 1.0)
    text = _describe_abstention(Abstention(test=counts), 0.8)
    assert text == "--abstain-below 0.8 as measured: 2 of 4 test images answered, 50.0 % of them correctly"
    assert "is not known" in _describe_abstention(Abstention(), 0.8)


def test_a_version_has_both_accuracies_and_the_warning() -> None:
    test = {"images": 50, "top1": 0.54, "top1_low": 0.5, "top1_high": 0.6}
    test["warnings"] = ["the intervals do not overlap"]
    card = deployment_card(metrics={"quality/top1": 0.778}, test=test)
    assert accuracy_tags(card) == {
        ACCURACY_TAG: "77.8 % top-1 on validation, 54.0 % top-1 on test",
        TEST_WARNING_TAG: "the intervals do not overlap",
    }
    assert accuracy_tags(deployment_card()) == {ACCURACY_TAG: None, TEST_WARNING_TAG: None}
