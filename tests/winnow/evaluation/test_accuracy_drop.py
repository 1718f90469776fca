from __future__ import annotations

import numpy as np
import pytest

from winnow.evaluation.accuracy_drop import decision_route, measure_drops
from winnow.evaluation.intervals import disagreement_interval, paired_drop
from winnow.evaluation.macro_f1_drop import macro_f1_drop

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 400)
REFERENCE = np.eye(4, dtype=np.float32)[np.where(RNG.random(400) < 0.8, LABELS, (LABELS + 1) % 4)]
CHILD = np.where((RNG.random(400) < 0.05)[:, None], np.roll(REFERENCE, 1, axis=1), REFERENCE)


def test_drops_use_labels_and_predictions() -> None:
    labels = np.where(np.arange(400) < 50, LABELS, -1)
    report = measure_drops(REFERENCE, CHILD, labels)
    reference_classes, child_classes = REFERENCE.argmax(1), CHILD.argmax(1)
    assert report.top1.labelled == paired_drop(reference_classes[:50] == LABELS[:50], child_classes[:50] == LABELS[:50])
    assert report.top1.answers == disagreement_interval(reference_classes, child_classes)
    assert report.macro_f1.labelled == macro_f1_drop(LABELS[:50], reference_classes[:50], child_classes[:50])
    assert report.macro_f1.answers == macro_f1_drop(reference_classes, reference_classes, child_classes)
    assert report.top1.answers.high < report.top1.labelled.high


@pytest.mark.parametrize(
    ("labelled", "images", "route"),
    [(0, 900, "answers"), (499, 900, "answers"), (500, 900, "labels"), (60, 60, "labels"), (59, 60, "answers")],
)
def test_the_route_depends_on_the_number_of_labels(labelled: int, images: int, route: str) -> None:
    assert decision_route(np.where(np.arange(images) < labelled, 1, -1)) == route


def test_intervals_are_simultaneous_over_all_candidates() -> None:
    one_candidate, eight_candidates = (
        measure_drops(REFERENCE, CHILD, LABELS),
        measure_drops(REFERENCE, CHILD, LABELS, candidates=8),
    )
    confidence = 1 - 0.05 / 8
    for single, simultaneous in (
        (one_candidate.top1, eight_candidates.top1),
        (one_candidate.macro_f1, eight_candidates.macro_f1),
    ):
        assert (single.candidates, simultaneous.candidates) == (1, 8)
        for single_drop, simultaneous_drop in (
            (single.labelled, simultaneous.labelled),
            (single.answers, simultaneous.answers),
        ):
            assert single_drop is not None
            assert simultaneous_drop is not None
            assert (simultaneous_drop.points, simultaneous_drop.confidence) == (
                single_drop.points,
                pytest.approx(confidence),
            )
            assert simultaneous_drop.low < single_drop.low
            assert single_drop.high < simultaneous_drop.high
    assert eight_candidates.macro_f1.unchanged == macro_f1_drop(LABELS, LABELS, LABELS, confidence=confidence).high


def test_changed_predictions_bound_the_drop_with_labels() -> None:
    all_labels = measure_drops(REFERENCE, CHILD, LABELS)
    assert all_labels.top1.labelled is not None
    assert abs(all_labels.top1.labelled.points) <= all_labels.top1.answers.points


def test_without_labels_only_predictions_are_compared() -> None:
    report = measure_drops(REFERENCE, CHILD, np.full(400, -1))
    assert report.top1.labelled is None
    assert report.macro_f1.labelled is None
    assert report.macro_f1.answers.points == pytest.approx(5, abs=2.5)


def test_equal_predictions_have_no_drop() -> None:
    report = measure_drops(REFERENCE, REFERENCE, LABELS)
    assert report.top1.labelled is not None
    assert report.macro_f1.labelled is not None
    assert {e.points for e in (report.top1.labelled, report.top1.answers, report.macro_f1.labelled)} == {0.0}
