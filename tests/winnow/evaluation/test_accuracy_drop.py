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


def test_labels_are_used_where_they_are_and_answers_everywhere() -> None:
    labels = np.where(np.arange(400) < 50, LABELS, -1)
    report = measure_drops(REFERENCE, CHILD, labels)
    theirs, own = REFERENCE.argmax(1), CHILD.argmax(1)
    assert report.top1.labelled == paired_drop(theirs[:50] == LABELS[:50], own[:50] == LABELS[:50])
    assert report.top1.answers == disagreement_interval(theirs, own)
    assert report.macro_f1.labelled == macro_f1_drop(LABELS[:50], theirs[:50], own[:50])
    assert report.macro_f1.answers == macro_f1_drop(theirs, theirs, own)
    assert report.top1.answers.high < report.top1.labelled.high


@pytest.mark.parametrize(
    ("labelled", "images", "route"),
    [(0, 900, "answers"), (499, 900, "answers"), (500, 900, "labels"), (60, 60, "labels"), (59, 60, "answers")],
)
def test_what_decides_is_fixed_by_the_number_of_labels(labelled: int, images: int, route: str) -> None:
    assert decision_route(np.where(np.arange(images) < labelled, 1, -1)) == route


def test_intervals_hold_for_all_candidates_together() -> None:
    alone, together = measure_drops(REFERENCE, CHILD, LABELS), measure_drops(REFERENCE, CHILD, LABELS, candidates=8)
    confidence = 1 - 0.05 / 8
    for single, several in ((alone.top1, together.top1), (alone.macro_f1, together.macro_f1)):
        assert (single.candidates, several.candidates) == (1, 8)
        for a, b in ((single.labelled, several.labelled), (single.answers, several.answers)):
            assert a is not None
            assert b is not None
            assert (b.points, b.confidence) == (a.points, pytest.approx(confidence))
            assert b.low < a.low
            assert a.high < b.high
    assert together.macro_f1.unchanged == macro_f1_drop(LABELS, LABELS, LABELS, confidence=confidence).high


def test_what_the_answers_say_bounds_what_all_labels_would() -> None:
    all_labels = measure_drops(REFERENCE, CHILD, LABELS)
    assert all_labels.top1.labelled is not None
    assert abs(all_labels.top1.labelled.points) <= all_labels.top1.answers.points


def test_without_labels_the_answers_stand_alone() -> None:
    report = measure_drops(REFERENCE, CHILD, np.full(400, -1))
    assert report.top1.labelled is None
    assert report.macro_f1.labelled is None
    assert report.macro_f1.answers.points == pytest.approx(5, abs=2.5)


def test_equal_answers_have_lost_nothing() -> None:
    report = measure_drops(REFERENCE, REFERENCE, LABELS)
    assert report.top1.labelled is not None
    assert report.macro_f1.labelled is not None
    assert {e.points for e in (report.top1.labelled, report.top1.answers, report.macro_f1.labelled)} == {0.0}
