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
    with pytest.raises(ValueError, match="is not a proportion"):
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
    z2 = normal_quantile(0.95) ** 2
    end = z2 / (count + z2) * 100  # in closed form
    assert end == pytest.approx(smallest_upper_end(count))
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
    with pytest.raises(ValueError, match="same number of images"):
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


@pytest.mark.parametrize(("differ", "count"), [(0, 40), (7, 300)])
def test_other_answers_are_a_proportion(differ: int, count: int) -> None:
    reference = np.arange(count) % 5
    child = np.where(np.arange(count) < differ, reference + 1, reference)
    drop = disagreement_interval(reference, child)
    low, high = wilson_interval(differ, count)
    assert (drop.points, drop.low, drop.high) == pytest.approx((differ / count * 100, low * 100, high * 100))


def imagined(seed: int, sizes: tuple[int, ...], lost: float = 0.04, won: float = 0.02) -> tuple[np.ndarray, ...]:
    """Labels, and answers of two networks of which the first is right on 80 % and the second wins and loses some."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    wrong = (labels + rng.integers(1, len(sizes), len(labels))) % len(sizes)
    draw = rng.random(len(labels))
    reference = np.where(draw < 0.8, labels, wrong)
    child = np.where(draw < 0.8 - lost, labels, np.where(draw >= 1 - won, labels, wrong))
    return labels, reference, child


def test_macro_f1_drop_equals_scikit_learn_and_mirrors_when_swapped() -> None:
    labels, reference, child = imagined(3, (40, 200, 9, 80))
    drop = macro_f1_drop(labels, reference, child)
    first, second = (f1_score(labels, answers, average="macro") for answers in (reference, child))
    assert drop.points == pytest.approx((first - second) * 100)
    assert drop.low < drop.points < drop.high
    assert drop == macro_f1_drop(labels, reference, child)
    swapped = macro_f1_drop(labels, child, reference)
    assert (-swapped.high, -swapped.low) == pytest.approx((drop.low, drop.high), abs=0.3)


@pytest.mark.thorough
def test_macro_f1_drop_against_resampling_every_image_of_a_class() -> None:
    sizes = (150, 400, 250)
    labels, reference, child = imagined(1, sizes)
    ours, rng, drops = macro_f1_drop(labels, reference, child), np.random.default_rng(0), []
    for _ in range(1000):
        chosen = np.concatenate([rng.choice(np.flatnonzero(labels == c), size) for c, size in enumerate(sizes)])
        first, second = (f1_score(labels, answers[chosen], average="macro") for answers in (reference, child))
        drops.append((first - second) * 100)
    assert (ours.low, ours.high) == pytest.approx(np.percentile(drops, [2.5, 97.5]), abs=0.35)


def test_a_class_of_three_is_never_known_for_certain() -> None:
    large = np.repeat(np.arange(4), 500)
    rare = np.append(large, [4, 4, 4])
    sure, unsure = macro_f1_drop(large, large, large), macro_f1_drop(rare, rare, rare)
    assert sure.points == unsure.points == 0.0
    assert sure.high < 0.5
    assert unsure.high > 4


def test_macro_f1_drop_covers_the_truth_as_often_as_it_says_with_rare_classes() -> None:
    sizes, inside, tries = (120, 60, 20, 5, 3), 0, 200
    labels, *both = imagined(0, tuple(size * 400 for size in sizes))
    truth = [f1_score(labels, answers, average="macro") * 100 for answers in both]
    for seed in range(tries):
        drop = macro_f1_drop(*imagined(1000 + seed, sizes))
        inside += drop.low <= truth[0] - truth[1] <= drop.high
    assert inside / tries >= 0.93


def test_macro_f1_drop_of_many_classes_ignores_those_that_never_occur() -> None:
    labels, reference, child = imagined(2, (30, 30, 30))
    drop = macro_f1_drop(labels * 300, reference * 300, child * 300)
    assert drop.points == pytest.approx(macro_f1_drop(labels, reference, child).points)


@pytest.mark.parametrize("sizes", [(3, 3, 2), (0, 0, 0)])
def test_macro_f1_drop_wants_the_same_images(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="same number of images"):
        macro_f1_drop(*(np.zeros(size, np.int64) for size in sizes))


@pytest.mark.parametrize(("pairs", "outside"), [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6)])
def test_the_interval_of_a_ratio_is_that_of_order_statistics(pairs: int, outside: int) -> None:
    # Ranks of the table in Conover, Practical Nonparametric Statistics, for the 95 % interval of a median.
    own = np.ones(pairs)
    reference = np.random.default_rng(0).permutation(np.arange(1.0, pairs + 1))
    ratio = paired_ratio(reference.tolist(), own.tolist())
    assert (ratio.low, ratio.high) == (outside, pairs + 1 - outside)
    assert ratio.value == (pairs + 1) / 2


def test_the_interval_of_a_ratio_covers_it_in_95_of_100_draws() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        drift = rng.gamma(4, size=10)  # of the machine, in both
        own, reference = (drift * rng.lognormal(sigma=0.1, size=10) for _ in range(2))
        ratio = paired_ratio((2 * reference).tolist(), own.tolist())
        covered += ratio.low <= 2 <= ratio.high
    assert covered >= 950


def test_too_few_pairs_have_no_interval_and_a_better_value_stays_inside() -> None:
    assert paired_ratio([2.0] * 5, [1.0] * 5) == Ratio(2.0, 0.0, math.inf)
    assert paired_ratio([2.0] * 6, [1.0] * 6, 2.5) == Ratio(2.5, 2.0, 2.5)
    assert Ratio(2.0, 1.9, 2.1).widened(0.0) == Ratio(2.0, 1.9, 2.1)
    assert Ratio(2.0, 1.9, 2.1).widened(0.25) == Ratio(2.0, 1.6, 2.5)
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratio([], [])


def test_crossed_gains_cover_the_mean_whichever_factor_varies() -> None:
    rng = np.random.default_rng(0)
    for of_backbone, of_draw, of_rest in ((1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.2), (0.0, 0.0, 1.0)):
        covered = 0
        for _ in range(400):
            gains = of_backbone * rng.standard_normal((3, 1)) + of_draw * rng.standard_normal((1, 5))
            mean, low, high = two_way_gain(5.0 + gains + of_rest * rng.standard_normal((3, 5)))
            assert low <= mean <= high
            covered += low <= 5.0 <= high
        assert covered >= 0.94 * 400, (of_backbone, of_draw, of_rest, covered)


def test_crossed_gains_are_not_independent() -> None:
    gains = np.repeat(np.array([[1.0], [2.0], [6.0]]), 5, axis=1)  # every draw says the same of a backbone
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
    reference, child = right_and_wrong()
    single, simultaneous = paired_drop(reference, child), paired_drop(reference, child, confidence)
    assert (simultaneous.points, simultaneous.confidence) == (single.points, confidence)
    assert simultaneous.low <= single.low
    assert single.high <= simultaneous.high
    assert (comparisons == 1) == (simultaneous == single)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        simultaneous_confidence(0)


@pytest.mark.parametrize("sizes", [(150, 400, 250), (120, 60, 20, 5, 3), (300, 300, 2)])
@pytest.mark.parametrize("comparisons", [1, 8, 16])
def test_ends_of_macro_f1_beyond_95_percent_are_where_many_replicates_put_them(
    sizes: tuple[int, ...], comparisons: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    confidence, given = simultaneous_confidence(comparisons), imagined(5, sizes)
    ours = macro_f1_drop(*given, confidence=confidence)
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(
        "winnow.evaluation.macro_f1_drop._moved_out", lambda drops, _: (drawn.append(drops), (0.0, 0.0))[1]
    )
    monkeypatch.setattr("winnow.evaluation.macro_f1_drop.REPLICATES", 20 * REPLICATES)
    macro_f1_drop(*given)
    low, high = np.quantile(drawn[0], [(1 - confidence) / 2, (1 + confidence) / 2]) * 100
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_macro_f1_drop_covers_the_truth_as_often_over_many_candidates() -> None:
    sizes, tries, comparisons = (120, 60, 20, 5, 3), 100, 8
    labels, *both = imagined(0, tuple(size * 400 for size in sizes))
    truth = [f1_score(labels, answers, average="macro") * 100 for answers in both]
    missed = 0
    for seed in range(tries):
        drop = macro_f1_drop(*imagined(5000 + seed, sizes), confidence=simultaneous_confidence(comparisons))
        missed += not drop.low <= truth[0] - truth[1] <= drop.high
    assert missed <= 2  # of 100, at 0.6 %
