"""How far a figure may be off: intervals of proportions, of paired losses, and of gains over seeds.

Proportions carry Wilson's interval; a child is compared with its reference on the same images (Tango's score interval;
macro F1: winnow/evaluation/macro_f1_drop.py), and arms are compared over paired label seeds (Student's t). All are 95 %
unless asked otherwise, and all stay honest where there are few images or few of them differ. Where images lie in
groups, such as crops of one photograph, the groups are what counts (winnow/evaluation/effective_sample_size.py).

Where one of several is chosen by its interval, each takes the confidence of `simultaneous_confidence` (Bonferroni), so
that all of them hold together in 95 of 100 cases, whatever the candidates have in common.

Sources: Wilson 1927 (JASA 22); Tango 1998 (Statistics in Medicine 17); others where they are used.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra
from winnow.evaluation.effective_sample_size import clusters

CONFIDENCE = 0.95
BISECTIONS = 60


@dataclass(frozen=True)
class Drop:
    """Points that a child lost against its reference, with the ends of the interval."""

    points: float
    """Positive where the child is worse."""
    low: float
    high: float
    confidence: float = CONFIDENCE
    """Of this interval by itself."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster a file is than another, with the ends of the 95 % interval."""

    value: float
    low: float
    high: float

    def widened(self, error: float) -> Ratio:
        """Return the interval with both ends at least the factor 1 + `error` away."""
        return Ratio(self.value, min(self.low, self.value / (1 + error)), max(self.high, self.value * (1 + error)))


def paired_ratio(reference_R: Sequence[float], own_R: Sequence[float], value: float | None = None) -> Ratio:
    """Return how many times `reference_R` is of `own_R`, pairs in time such as the medians of one round.

    The interval is that of the median of the pairs' ratios by order statistics, whatever their distribution (Thompson
    1936, Annals of Mathematical Statistics 7): one disturbed round moves it little. With fewer than 6 pairs it has no
    ends. `value`: a better estimate of the ratio, such as that of medians over all calls; the median ratio if None.
    Raises ValueError where the two do not pair.
    """
    if len(reference_R) != len(own_R) or not len(own_R):
        raise ValueError(f"{len(reference_R)} and {len(own_R)} times do not pair")
    ratios = sorted(reference / own for reference, own in zip(reference_R, own_R, strict=True))
    value = statistics.median(ratios) if value is None else value
    outside = _ranks_outside(len(ratios))
    if not outside:
        return Ratio(value, 0.0, math.inf)
    return Ratio(value, min(value, ratios[outside - 1]), max(value, ratios[-outside]))


def _ranks_outside(count: int) -> int:
    """The largest k for which the k-th smallest and k-th largest of `count` hold the median in 95 % of all draws."""
    below, k = 0.5**count, 0
    while below <= (1 - 0.95) / 2:
        k += 1
        below += math.comb(count, k) * 0.5**count
    return k


def simultaneous_confidence(comparisons: int) -> float:
    """Return the confidence of each of so many intervals with which all hold together in 95 % of cases (Bonferroni)."""
    if comparisons < 1:
        raise ValueError(f"{comparisons} comparisons are none")
    return 1 - (1 - CONFIDENCE) / comparisons


def normal_quantile(confidence: float) -> float:
    """Return z such that a normal variable is within z standard deviations with this probability."""
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def wilson_interval(right: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a proportion, as fractions."""
    return _wilson(right, count, normal_quantile(confidence))


def proportion_interval(
    right_N: NDArray[np.bool_], groups_N: NDArray[np.int64] | None = None, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Wilson's interval of the share of true values, as fractions; `groups_N`: group of each image.

    With fewer than LEAST_GROUPS groups it is (0, 1).
    """
    right, count, grouped = int(right_N.sum()), len(right_N), clusters(groups_N)
    if grouped is None or count == 0:
        return wilson_interval(right, count, confidence)
    if grouped.too_few:
        return 0.0, 1.0
    effect = grouped.design_effect(right_N.astype(np.float64))
    return _wilson(right / effect, count / effect, grouped.quantile(confidence))


def _wilson(right: float, count: float, z: float) -> tuple[float, float]:
    """Return Wilson's interval for a quantile `z`; counts may be fractions."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count} is no proportion")
    share, z2 = right / count, z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * ((share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5)
    # None and all right have exact ends, which rounding misses by a hair.
    return 0.0 if right == 0 else centre - half, 1.0 if right == count else centre + half


def paired_drop(
    reference_right_N: NDArray[np.bool_],
    child_right_N: NDArray[np.bool_],
    confidence: float = CONFIDENCE,
    groups_N: NDArray[np.int64] | None = None,
) -> Drop:
    """Return the points lost by the child on the same images, with Tango's score interval.

    Also right where few images differ: with none of 30 different the ends are +-11 points, not 0. `groups_N`: group of
    each image; with fewer than LEAST_GROUPS groups the ends are +-100 points.
    """
    if len(reference_right_N) != len(child_right_N) or len(child_right_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    lost_N, won_N = reference_right_N & ~child_right_N, child_right_N & ~reference_right_N
    lost, won, count = float(lost_N.sum()), float(won_N.sum()), float(len(child_right_N))
    points, z = (lost - won) / count * 100, normal_quantile(confidence)
    if grouped := clusters(groups_N):
        if grouped.too_few:
            return Drop(points, -100.0, 100.0, confidence)
        effect = grouped.design_effect(lost_N.astype(np.float64) - won_N)
        lost, won, count, z = lost / effect, won / effect, count / effect, grouped.quantile(confidence)
    low, high = (_tango_end(lost, won, count, score) * 100 for score in (z, -z))
    return Drop(points, low, high, confidence)


def least_worst_end(count: int, confidence: float = CONFIDENCE, groups_N: NDArray[np.int64] | None = None) -> float:
    """Return the points of loss that `count` images cannot rule out even for a child that answers all of them alike.

    `groups_N`: group of each image.
    """
    grouped = clusters(groups_N)
    if grouped is None:
        z2 = normal_quantile(confidence) ** 2
        return z2 / (count + z2) * 100
    if grouped.too_few:
        return 100.0
    z2 = grouped.quantile(confidence) ** 2
    return z2 / (count / grouped.design_effect(np.zeros(count)) + z2) * 100


def disagreement_interval(
    reference_N: NDArray[np.int64],
    child_N: NDArray[np.int64],
    confidence: float = CONFIDENCE,
    groups_N: NDArray[np.int64] | None = None,
) -> Drop:
    """Return the share of images whose answer differs, in points, with Wilson's interval: no drop exceeds it."""
    if len(reference_N) != len(child_N) or len(child_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    differs_N = reference_N != child_N
    low, high = proportion_interval(differs_N, groups_N, confidence)
    return Drop(float(differs_N.mean()) * 100, low * 100, high * 100, confidence)


def _tango_end(lost: float, won: float, count: float, score: float) -> float:
    """Return the difference at which the score statistic is z (the lower end) or -z; it falls with the difference."""
    below, above = -1.0, 1.0
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        if _tango_score(lost, won, count, middle) > score:
            below = middle
        else:
            above = middle
    return above if score > 0 else below


def _tango_score(lost: float, won: float, count: float, difference: float) -> float:
    """Standardised distance of the observed difference from a supposed one (Tango 1998, equation 8)."""
    linear = -lost - won + (2 * count - lost + won) * difference
    constant = -won * difference * (1 - difference)
    share_won = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    variance = count * (2 * share_won + difference * (1 - difference))
    distance = lost - won - count * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def paired_gain(treated: Sequence[float], control: Sequence[float]) -> tuple[float, float, float]:
    """Mean of treated - control in points, and the ends of Student's 95 % interval over the pairs.

    Accuracies are fractions. A single pair has no spread: both ends are then the mean, and callers say how many pairs
    there were.
    """
    if len(treated) != len(control) or not treated:
        raise ValueError(f"{len(treated)} and {len(control)} runs do not pair")
    gains = [(a - b) * 100 for a, b in zip(treated, control, strict=True)]
    mean = statistics.fmean(gains)
    if len(gains) == 1:
        return mean, mean, mean
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy", "report") from error
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return mean, mean - half, mean + half


def crossed_gain(gains_BS: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean gain and the ends of its 95 % interval, of B pretrained backbones on S label draws each.

    Both are drawn at random, and every backbone meets every draw, so that 15 gains of 3 backbones are not 15
    independent ones. The interval is the widest of three: Student's over the backbones' means, right where backbones
    differ; over the draws' means, right where draws do; and that of the two-way random-effects model without repeats,
    with Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2), for where both do. Raises ValueError with
    fewer than two of either.
    """
    backbones, draws = gains_BS.shape
    if backbones < 2 or draws < 2:
        raise ValueError(f"{backbones} backbones on {draws} label draws have no interval; it takes two of each")
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy", "report") from error
    mean, count = float(gains_BS.mean()), backbones * draws
    by_backbone_B, by_draw_S = gains_BS.mean(1), gains_BS.mean(0)
    rest_BS = gains_BS - by_backbone_B[:, None] - by_draw_S[None] + mean
    squares = (  # mean square, degrees of freedom, sign in the variance of the mean
        (draws * float(by_backbone_B.var(ddof=1)), backbones - 1, 1),
        (backbones * float(by_draw_S.var(ddof=1)), draws - 1, 1),
        (float((rest_BS**2).sum()) / ((backbones - 1) * (draws - 1)), (backbones - 1) * (draws - 1), -1),
    )
    halves = [float(t.ppf(0.975, degrees)) * (square / count) ** 0.5 for square, degrees, sign in squares if sign > 0]
    total = sum(sign * square for square, _, sign in squares)
    if total > 0:
        freedom = total**2 / sum(square**2 / degrees for square, degrees, _ in squares)
        halves.append(float(t.ppf(0.975, max(1.0, freedom))) * (total / count) ** 0.5)
    return mean, mean - max(halves), mean + max(halves)
