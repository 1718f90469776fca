from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm, ttest_rel
from sklearn.metrics import f1_score

from winnow.evaluation.intervals import (
    Ratio,
    disagreement_interval,
    normal_quantile,
    paired_drop,
    paired_gain,
    paired_ratio,
    simultaneous_confidence,
    smallest_upper_end,
    two_way_gain,
    wilson_interval,
)
from winnow.evaluation.macro_f1_drop import REPLICATES, macro_f1_drop

CLASSES = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_table_of_newcombe(correct: int, count: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
def test_wilson_equals_scipy_and_contains_the_share(count: int) -> None:
    for correct in {0, 1, count // 3, count - 1, count}:
        low, high = wilson_interval(correct, count)
        assert (low, high) == pytest.approx(binomtest(correct, count).proportion_ci(method="wilson"), abs=1e-12)
        assert 0 <= low <= correct / count <= high <= 1
        assert wilson_interval(count - correct, count) == pytest.approx((1 - high, 1 - low))


def test_wilson_ends_at_zero_and_one() -> None:
    assert wilson_interval(0, 60)[0] == 0.0
    assert wilson_interval(60, 60)[1] == 1.0


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_needs_a_proportion(correct: int, count: int) -> None:
    with pytest.raises(ValueError, match="is not a proportion"):
        wilson_interval(correct, count)


def random_results(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    reference = rng.random(count) < 0.9
    return reference, np.where(rng.random(count) < 0.15, ~reference, reference)


def paired_results(losses: int, wins: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (reference correct, child correct) with these numbers of images that only one of them has right."""
    indices = np.arange(count)
    return indices >= wins, (indices < wins) | (indices >= wins + losses)


def test_drop_is_close_to_the_bootstrap() -> None:
    reference, child = random_results()
    drop = paired_drop(reference, child)
    rng = np.random.default_rng(2)
    resampled = rng.integers(0, len(child), (20_000, len(child)))
    drops = (reference[resampled].mean(1) - child[resampled].mean(1)) * 100
    low, high = np.percentile(drops, [2.5, 97.5])
    assert drop.points == pytest.approx((reference.mean() - child.mean()) * 100)
    assert (drop.low, drop.high) == pytest.approx((low, high), abs=0.34)  # one image is a third of a point
    assert drop.low < drop.points < drop.high


def test_drop_of_a_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation; Fagerland, Lydersen and Laake 2014, table 6.
    drop = paired_drop(*paired_results(losses=1, wins=7, count=21))
    assert (drop.points, drop.low, drop.high) == pytest.approx((-28.6, -51.7, -2.6), abs=0.05)


@pytest.mark.parametrize("count", [30, 2000])
def test_drop_of_equal_predictions_has_an_interval(count: int) -> None:
    drop = paired_drop(*paired_results(0, 0, count))
    squared_quantile = normal_quantile(0.95) ** 2
    bound = squared_quantile / (count + squared_quantile) * 100  # in closed form
    assert bound == pytest.approx(smallest_upper_end(count))
    assert (drop.points, drop.low, drop.high) == pytest.approx((0.0, -bound, bound), abs=1e-6)


@pytest.mark.parametrize(("losses", "wins", "count"), [(0, 5, 5), (5, 0, 5), (1, 0, 1), (3, 3, 6)])
def test_drop_of_extremes_stays_in_range(losses: int, wins: int, count: int) -> None:
    drop = paired_drop(*paired_results(losses, wins, count))
    assert -100 <= drop.low <= drop.points <= drop.high <= 100


def test_drop_has_its_coverage() -> None:
    rng = np.random.default_rng(7)
    loss_rate, win_rate = 0.03, 0.01
    covered = 0
    for _ in range(600):
        draw = rng.random(150)
        drop = paired_drop(draw >= win_rate, (draw < win_rate) | (draw >= win_rate + loss_rate))
        covered += drop.low <= (loss_rate - win_rate) * 100 <= drop.high
    assert covered / 600 == pytest.approx(0.95, abs=0.025)


def test_drop_depends_on_pairs_only_and_mirrors_when_swapped() -> None:
    reference, child = random_results()
    drop, swapped = paired_drop(reference, child), paired_drop(child, reference)
    assert (-swapped.high, -swapped.points, -swapped.low) == pytest.approx((drop.low, drop.points, drop.high))
    order = np.random.default_rng(0).permutation(len(child))
    assert paired_drop(reference[order], child[order]) == drop


@pytest.mark.parametrize(("reference_count", "child_count"), [(0, 0), (3, 2)])
def test_drop_needs_the_same_images(reference_count: int, child_count: int) -> None:
    with pytest.raises(ValueError, match="same number of images"):
        paired_drop(np.ones(reference_count, bool), np.ones(child_count, bool))


def test_gain_equals_the_paired_t_test() -> None:
    rng = np.random.default_rng(5)
    control = rng.uniform(0.5, 0.6, 6)
    treated = control + rng.normal(0.04, 0.02, 6)
    reference = ttest_rel(treated * 100, control * 100).confidence_interval(0.95)
    mean, low, high = paired_gain(treated.tolist(), control.tolist())
    assert mean == pytest.approx((treated - control).mean() * 100)
    assert (low, high) == pytest.approx((reference.low, reference.high))
    assert paired_gain(control.tolist(), treated.tolist()) == pytest.approx((-mean, -high, -low))


def test_gain_of_one_pair_has_no_interval_and_no_pair_is_refused() -> None:
    assert paired_gain([0.5], [0.25]) == (25.0, 25.0, 25.0)
    for treated, control in (([], []), ([0.1], [0.1, 0.2])):
        with pytest.raises(ValueError, match="do not pair"):
            paired_gain(treated, control)


@pytest.mark.parametrize(("changed", "count"), [(0, 40), (7, 300)])
def test_changed_predictions_are_a_proportion(changed: int, count: int) -> None:
    reference = np.arange(count) % 5
    child = np.where(np.arange(count) < changed, reference + 1, reference)
    drop = disagreement_interval(reference, child)
    low, high = wilson_interval(changed, count)
    assert (drop.points, drop.low, drop.high) == pytest.approx((changed / count * 100, low * 100, high * 100))


def random_predictions(
    seed: int, sizes: tuple[int, ...], loss_rate: float = 0.04, win_rate: float = 0.02
) -> tuple[np.ndarray, ...]:
    """Return labels and two predictions: the reference is right on 80 %, the child loses and wins some images."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    wrong = (labels + rng.integers(1, len(sizes), len(labels))) % len(sizes)
    draw = rng.random(len(labels))
    reference = np.where(draw < 0.8, labels, wrong)
    child = np.where(draw < 0.8 - loss_rate, labels, np.where(draw >= 1 - win_rate, labels, wrong))
    return labels, reference, child


def test_macro_f1_drop_equals_scikit_learn_and_mirrors_when_swapped() -> None:
    labels, reference, child = random_predictions(3, (40, 200, 9, 80))
    drop = macro_f1_drop(labels, reference, child)
    reference_f1, child_f1 = (f1_score(labels, predictions, average="macro") for predictions in (reference, child))
    assert drop.points == pytest.approx((reference_f1 - child_f1) * 100)
    assert drop.low < drop.points < drop.high
    assert drop == macro_f1_drop(labels, reference, child)
    swapped = macro_f1_drop(labels, child, reference)
    assert (-swapped.high, -swapped.low) == pytest.approx((drop.low, drop.high), abs=0.3)


@pytest.mark.thorough
def test_macro_f1_drop_is_close_to_the_stratified_bootstrap() -> None:
    sizes = (150, 400, 250)
    labels, reference, child = random_predictions(1, sizes)
    drop, rng, drops = macro_f1_drop(labels, reference, child), np.random.default_rng(0), []
    for _ in range(1000):
        resampled = np.concatenate([rng.choice(np.flatnonzero(labels == c), size) for c, size in enumerate(sizes)])
        reference_f1, child_f1 = (
            f1_score(labels, predictions[resampled], average="macro") for predictions in (reference, child)
        )
        drops.append((reference_f1 - child_f1) * 100)
    assert (drop.low, drop.high) == pytest.approx(np.percentile(drops, [2.5, 97.5]), abs=0.35)


def test_a_class_of_three_images_widens_the_interval() -> None:
    large_classes = np.repeat(np.arange(4), 500)
    with_rare_class = np.append(large_classes, [4, 4, 4])
    drop, drop_with_rare_class = (
        macro_f1_drop(large_classes, large_classes, large_classes),
        macro_f1_drop(with_rare_class, with_rare_class, with_rare_class),
    )
    assert drop.points == drop_with_rare_class.points == 0.0
    assert drop.high < 0.5
    assert drop_with_rare_class.high > 4


def test_macro_f1_drop_has_its_coverage_with_rare_classes() -> None:
    sizes, covered, repetitions = (120, 60, 20, 5, 3), 0, 200
    labels, *predictions = random_predictions(0, tuple(size * 400 for size in sizes))
    truth = [f1_score(labels, predicted, average="macro") * 100 for predicted in predictions]
    for seed in range(repetitions):
        drop = macro_f1_drop(*random_predictions(1000 + seed, sizes))
        covered += drop.low <= truth[0] - truth[1] <= drop.high
    assert covered / repetitions >= 0.93


def test_macro_f1_drop_ignores_classes_that_never_occur() -> None:
    labels, reference, child = random_predictions(2, (30, 30, 30))
    drop = macro_f1_drop(labels * 300, reference * 300, child * 300)
    assert drop.points == pytest.approx(macro_f1_drop(labels, reference, child).points)


@pytest.mark.parametrize("sizes", [(3, 3, 2), (0, 0, 0)])
def test_macro_f1_drop_needs_the_same_images(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="same number of images"):
        macro_f1_drop(*(np.zeros(size, np.int64) for size in sizes))


@pytest.mark.parametrize(("pair_count", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6)])
def test_the_interval_of_a_ratio_is_that_of_order_statistics(pair_count: int, rank: int) -> None:
    # Ranks of the table in Conover, Practical Nonparametric Statistics, for the 95 % interval of a median.
    candidate = np.ones(pair_count)
    reference = np.random.default_rng(0).permutation(np.arange(1.0, pair_count + 1))
    ratio = paired_ratio(reference.tolist(), candidate.tolist())
    assert (ratio.low, ratio.high) == (rank, pair_count + 1 - rank)
    assert ratio.value == (pair_count + 1) / 2


def test_the_interval_of_a_ratio_has_its_coverage() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        drift = rng.gamma(4, size=10)  # of the machine, in both
        candidate, reference = (drift * rng.lognormal(sigma=0.1, size=10) for _ in range(2))
        ratio = paired_ratio((2 * reference).tolist(), candidate.tolist())
        covered += ratio.low <= 2 <= ratio.high
    assert covered >= 950


def test_too_few_pairs_have_no_interval() -> None:
    assert paired_ratio([2.0] * 5, [1.0] * 5) == Ratio(2.0, 0.0, math.inf)
    assert paired_ratio([2.0] * 6, [1.0] * 6, 2.5) == Ratio(2.5, 2.0, 2.5)
    assert Ratio(2.0, 1.9, 2.1).widened(0.0) == Ratio(2.0, 1.9, 2.1)
    assert Ratio(2.0, 1.9, 2.1).widened(0.25) == Ratio(2.0, 1.6, 2.5)
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratio([], [])


def test_two_way_gain_has_its_coverage_whichever_factor_varies() -> None:
    rng = np.random.default_rng(0)
    for backbone_sd, draw_sd, residual_sd in ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.2), (0.0, 0.0, 1.0)):
        covered = 0
        for _ in range(400):
            gains = backbone_sd * rng.standard_normal((3, 1)) + draw_sd * rng.standard_normal((1, 5))
            mean, low, high = two_way_gain(5.0 + gains + residual_sd * rng.standard_normal((3, 5)))
            assert low <= mean <= high
            covered += low <= 5.0 <= high
        assert covered >= 0.94 * 400, (backbone_sd, draw_sd, residual_sd, covered)


def test_two_way_gain_does_not_assume_independence() -> None:
    gains = np.repeat(np.array([[1.0], [2.0], [6.0]]), 5, axis=1)  # all draws agree on each backbone
    mean, low, high = two_way_gain(gains + np.random.default_rng(0).normal(0, 1e-6, (3, 5)))
    expected = ttest_rel([1.0, 2.0, 6.0], [0.0] * 3).confidence_interval()
    assert (mean, low, high) == pytest.approx((3.0, expected.low, expected.high), abs=1e-3)
    with pytest.raises(ValueError, match="use at least two of each"):
        two_way_gain(gains[:1])


@pytest.mark.parametrize("comparisons", [1, 6, 16])
def test_simultaneous_intervals_share_the_error(comparisons: int) -> None:
    confidence = simultaneous_confidence(comparisons)
    assert (1 - confidence) * comparisons == pytest.approx(0.05)
    assert normal_quantile(confidence) == pytest.approx(norm.ppf(1 - 0.025 / comparisons))
    wilson = wilson_interval(1900, 2000, confidence)
    assert wilson == pytest.approx(binomtest(1900, 2000).proportion_ci(confidence, method="wilson"))
    reference, child = random_results()
    single, simultaneous = paired_drop(reference, child), paired_drop(reference, child, confidence)
    assert (simultaneous.points, simultaneous.confidence) == (single.points, confidence)
    assert simultaneous.low <= single.low
    assert single.high <= simultaneous.high
    assert (comparisons == 1) == (simultaneous == single)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        simultaneous_confidence(0)


@pytest.mark.parametrize("sizes", [(150, 400, 250), (120, 60, 20, 5, 3), (300, 300, 2)])
@pytest.mark.parametrize("comparisons", [1, 8, 16])
def test_macro_f1_interval_beyond_95_percent_equals_many_replicates(
    sizes: tuple[int, ...], comparisons: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    confidence, data = simultaneous_confidence(comparisons), random_predictions(5, sizes)
    drop = macro_f1_drop(*data, confidence=confidence)
    replicates: list[np.ndarray] = []
    monkeypatch.setattr(
        "winnow.evaluation.macro_f1_drop._moved_out", lambda drops, _: (replicates.append(drops), (0.0, 0.0))[1]
    )
    monkeypatch.setattr("winnow.evaluation.macro_f1_drop.REPLICATES", 20 * REPLICATES)
    macro_f1_drop(*data)
    low, high = np.quantile(replicates[0], [(1 - confidence) / 2, (1 + confidence) / 2]) * 100
    assert (drop.low, drop.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_macro_f1_drop_has_its_coverage_over_many_candidates() -> None:
    sizes, repetitions, comparisons = (120, 60, 20, 5, 3), 100, 8
    labels, *predictions = random_predictions(0, tuple(size * 400 for size in sizes))
    truth = [f1_score(labels, predicted, average="macro") * 100 for predicted in predictions]
    missed = 0
    for seed in range(repetitions):
        drop = macro_f1_drop(*random_predictions(5000 + seed, sizes), confidence=simultaneous_confidence(comparisons))
        missed += not drop.low <= truth[0] - truth[1] <= drop.high
    assert missed <= 2  # of 100, at 0.6 %
