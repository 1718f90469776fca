from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from winnow.evaluation import (
    Z95,
    agreement,
    calibration,
    least_worst_end,
    paired_drop,
    paired_gain,
    quality,
    softmax,
    wilson_interval,
)

CLASSES = ("a", "b", "c", "d")


def random_answers(count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not, and labels; the last class never occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES) - 1, count)
    logits = rng.normal(size=(count, len(CLASSES))).astype(np.float32)
    logits[np.arange(count), labels] += 1
    return logits, labels


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(right: int, count: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
def test_wilson_equals_scipy_and_holds_the_share(count: int) -> None:
    for right in {0, 1, count // 3, count - 1, count}:
        low, high = wilson_interval(right, count)
        assert (low, high) == pytest.approx(binomtest(right, count).proportion_ci(method="wilson"), abs=1e-12)
        assert 0 <= low <= right / count <= high <= 1
        assert wilson_interval(count - right, count) == pytest.approx((1 - high, 1 - low))


def test_wilson_ends_exactly_at_none_and_all() -> None:
    assert wilson_interval(0, 60)[0] == 0.0
    assert wilson_interval(60, 60)[1] == 1.0


@pytest.mark.parametrize(("right", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_wants_a_proportion(right: int, count: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(right, count)


def right_and_wrong(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    reference = rng.random(count) < 0.9
    return reference, np.where(rng.random(count) < 0.15, ~reference, reference)


def pairs(lost: int, won: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(reference right, child right) with so many images that only one of them has right."""
    numbers = np.arange(count)
    return numbers >= won, (numbers < won) | (numbers >= won + lost)


def test_drop_against_resampling_every_image() -> None:
    reference, child = right_and_wrong()
    ours = paired_drop(reference, child)
    rng = np.random.default_rng(2)
    chosen = rng.integers(0, len(child), (20_000, len(child)))
    drops = (reference[chosen].mean(1) - child[chosen].mean(1)) * 100
    low, high = np.percentile(drops, [2.5, 97.5])
    assert ours.points == pytest.approx((reference.mean() - child.mean()) * 100)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.34)  # one image is a third of a point
    assert ours.low < ours.points < ours.high


def test_drop_of_a_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation; Fagerland, Lydersen and Laake 2014, table 6.
    drop = paired_drop(*pairs(lost=1, won=7, count=21))
    assert (drop.points, drop.low, drop.high) == pytest.approx((-28.6, -51.7, -2.6), abs=0.05)


@pytest.mark.parametrize("count", [30, 2000])
def test_drop_of_equal_answers_is_still_uncertain(count: int) -> None:
    drop = paired_drop(*pairs(0, 0, count))
    end = Z95**2 / (count + Z95**2) * 100  # in closed form
    assert end == pytest.approx(least_worst_end(count))
    assert (drop.points, drop.low, drop.high) == pytest.approx((0.0, -end, end), abs=1e-6)


@pytest.mark.parametrize(("lost", "won", "count"), [(0, 5, 5), (5, 0, 5), (1, 0, 1), (3, 3, 6)])
def test_drop_of_extremes_stays_possible(lost: int, won: int, count: int) -> None:
    drop = paired_drop(*pairs(lost, won, count))
    assert -100 <= drop.low <= drop.points <= drop.high <= 100


def test_drop_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    lost, won = 0.03, 0.01
    inside = 0
    for _ in range(600):
        draw = rng.random(150)
        drop = paired_drop(draw >= won, (draw < won) | (draw >= won + lost))
        inside += drop.low <= (lost - won) * 100 <= drop.high
    assert inside / 600 == pytest.approx(0.95, abs=0.025)


def test_drop_looks_at_pairs_alone_and_mirrors_when_swapped() -> None:
    reference, child = right_and_wrong()
    drop, swapped = paired_drop(reference, child), paired_drop(child, reference)
    assert (-swapped.high, -swapped.points, -swapped.low) == pytest.approx((drop.low, drop.points, drop.high))
    order = np.random.default_rng(0).permutation(len(child))
    assert paired_drop(reference[order], child[order]) == drop


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 2)])
def test_drop_wants_the_same_images(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_drop(np.ones(first, bool), np.ones(second, bool))


def test_gain_equals_the_paired_t_test() -> None:
    rng = np.random.default_rng(5)
    control = rng.uniform(0.5, 0.6, 6)
    treated = control + rng.normal(0.04, 0.02, 6)
    reference = ttest_rel(treated * 100, control * 100).confidence_interval(0.95)
    mean, low, high = paired_gain(treated.tolist(), control.tolist())
    assert mean == pytest.approx((treated - control).mean() * 100)
    assert (low, high) == pytest.approx((reference.low, reference.high))
    assert paired_gain(control.tolist(), treated.tolist()) == pytest.approx((-mean, -high, -low))


def test_gain_of_one_pair_has_no_spread_and_no_pair_is_refused() -> None:
    assert paired_gain([0.5], [0.25]) == (25.0, 25.0, 25.0)
    for treated, control in (([], []), ([0.1], [0.1, 0.2])):
        with pytest.raises(ValueError, match="do not pair"):
            paired_gain(treated, control)


def logits_with(confidence: list[float], answers: list[int]) -> np.ndarray:
    """Two classes, softmax as wished."""
    margin = np.log(np.array(confidence) / (1 - np.array(confidence)))
    logits = np.zeros((len(answers), 2), np.float32)
    logits[np.arange(len(answers)), answers] = margin
    return logits


def test_calibration_error_by_hand() -> None:
    logits = logits_with([0.95, 0.75, 0.75, 0.55], [0, 1, 1, 0])
    labels = np.array([0, 1, 0, 1])
    error, bins = calibration(logits, labels)
    # A quarter is 5 points off, a half 25 points (0.75 sure, half of them right), a quarter 55 points.
    assert error == pytest.approx(0.25 * 0.05 + 0.5 * 0.25 + 0.25 * 0.55, abs=1e-6)
    assert [(row["accuracy"], row["count"]) for row in bins] == [(0.0, 1), (0.5, 2), (1.0, 1)]
    assert [row["confidence"] for row in bins] == pytest.approx([0.55, 0.75, 0.95])


def test_calibration_error_is_nothing_when_confidence_is_kept() -> None:
    logits = logits_with([0.8] * 10 + [1 - 1e-12] * 5, [0] * 15)
    assert calibration(logits, np.array([0] * 8 + [1] * 2 + [0] * 5))[0] == pytest.approx(0, abs=1e-6)


def test_softmax_is_a_distribution_and_shift_free() -> None:
    logits, _ = random_answers()
    np.testing.assert_allclose(softmax(logits).sum(1), 1)
    np.testing.assert_allclose(softmax(logits + np.float32(1000)), softmax(logits), atol=1e-4)


def test_quality_equals_scikit_learn() -> None:
    logits, labels = random_answers()
    answers = logits.argmax(1)
    metrics, details = quality(logits, labels, CLASSES)
    present = sorted(set(labels))
    wanted = {"average": "macro", "labels": present, "zero_division": 0}
    assert metrics["quality/top1"] == pytest.approx(accuracy_score(labels, answers))
    assert metrics["quality/macro_precision"] == pytest.approx(precision_score(labels, answers, **wanted))
    assert metrics["quality/macro_recall"] == pytest.approx(recall_score(labels, answers, **wanted))
    assert metrics["quality/macro_f1"] == pytest.approx(f1_score(labels, answers, **wanted))
    assert metrics["quality/ece"] == calibration(logits, labels)[0]
    right = int((labels == answers).sum())
    assert (metrics["quality/top1_low"], metrics["quality/top1_high"]) == wilson_interval(right, len(labels))
    assert details["confusion"] == confusion_matrix(labels, answers, labels=range(4)).tolist()
    assert list(details["per_class"]) == list(CLASSES)
    assert details["per_class"]["d"]["support"] == 0
    assert sum(row["count"] for row in details["reliability"]) == len(labels)


def test_quality_without_labels_is_empty() -> None:
    assert quality(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), CLASSES) == ({}, {})


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (2, 3)])
def test_quality_wants_a_row_per_label_and_a_column_per_class(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="for 2 labels of 4 classes"):
        quality(np.zeros(shape, np.float32), np.zeros(2, np.int64), CLASSES)


def test_agreement_bounds_the_drop() -> None:
    for seed in range(5):
        (first, labels), (second, _) = random_answers(seed=seed), random_answers(seed=seed + 50)
        share = agreement(first, second)
        assert share == agreement(second, first) == (first.argmax(1) == second.argmax(1)).mean()
        drop = (first.argmax(1) == labels).mean() - (second.argmax(1) == labels).mean()
        assert abs(drop) <= 1 - share + 1e-12
    assert agreement(first, first) == 1.0


@pytest.mark.parametrize("rows", [(0, 0), (2, 3)])
def test_agreement_wants_two_equal_tables(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two equal tables"):
        agreement(*(np.zeros((count, 4), np.float32) for count in rows))
