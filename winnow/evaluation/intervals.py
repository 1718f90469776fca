"""Confidence intervals of proportions, paired drops, and gains over seeds.

Proportions have Wilson's interval; a child is compared with its reference on the same images (Tango's score interval;
macro F1: winnow/evaluation/macro_f1_drop.py), and arms are compared over paired label seeds (Student's t). All are 95 %
by default, and keep their coverage with few images or few differences. If images are in groups, such as crops of one
photograph, the groups count (winnow/evaluation/effective_sample_size.py).

If one of several candidates is selected by its interval, each uses `simultaneous_confidence` (Bonferroni), so that all
intervals hold together with 95 % confidence, however the candidates are correlated.

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
from winnow.evaluation.effective_sample_size import image_groups
from winnow.records.selection import Drop

CONFIDENCE = 0.95
BISECTIONS = 60


@dataclass(frozen=True)
class Ratio:
    """The speed-up of one file over another, with the ends of the 95 % interval."""

    value: float
    low: float
    high: float

    def widened(self, error: float) -> Ratio:
        """Return the ratio with both ends at least a factor of 1 + `error` away."""
        return Ratio(self.value, min(self.low, self.value / (1 + error)), max(self.high, self.value * (1 + error)))


def paired_ratio(reference_R: Sequence[float], own_R: Sequence[float], value: float | None = None) -> Ratio:
    """Return the ratio reference_R / own_R of values paired in time, such as the medians of one round.

    The interval is that of the median of the pairs' ratios by order statistics, for any distribution (Thompson 1936,
    Annals of Mathematical Statistics 7), so one disturbed round changes it little. With fewer than 6 pairs it is
    unbounded. `value`: a better estimate of the ratio, such as that of medians over all calls; default: the median
    ratio. Raises ValueError if the lengths differ or are 0.
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
    """Return the largest k whose k-th smallest and k-th largest of `count` cover the median in 95 % of draws."""
    probability, k = 0.5**count, 0
    while probability <= (1 - 0.95) / 2:
        k += 1
        probability += math.comb(count, k) * 0.5**count
    return k


def simultaneous_confidence(comparisons: int) -> float:
    """Return the confidence of each interval such that all hold together with 95 % confidence (Bonferroni)."""
    if comparisons < 1:
        raise ValueError(f"the number of comparisons must be at least 1, got {comparisons}")
    return 1 - (1 - CONFIDENCE) / comparisons


def normal_quantile(confidence: float) -> float:
    """Return z such that a normal variable is within z standard deviations with this probability."""
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def wilson_interval(right: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's interval of a proportion, as fractions."""
    return _wilson(right, count, normal_quantile(confidence))


def proportion_interval(
    right_N: NDArray[np.bool_], groups_N: NDArray[np.int64] | None = None, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Wilson's interval of the share of true values, as fractions; `groups_N`: group of each image.

    With fewer than MIN_GROUPS groups it is (0, 1).
    """
    right, count, grouped = int(right_N.sum()), len(right_N), image_groups(groups_N)
    if grouped is None or count == 0:
        return wilson_interval(right, count, confidence)
    if grouped.too_few:
        return 0.0, 1.0
    effect = grouped.design_effect(right_N.astype(np.float64))
    return _wilson(right / effect, count / effect, grouped.quantile(confidence))


def _wilson(right: float, count: float, z: float) -> tuple[float, float]:
    """Return Wilson's interval for a quantile `z`; counts may be fractions."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} of {count} is not a proportion")
    share, z2 = right / count, z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * ((share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5)
    # With none or all correct one end is exactly 0 or 1, which rounding would miss.
    return 0.0 if right == 0 else centre - half, 1.0 if right == count else centre + half


def paired_drop(
    reference_right_N: NDArray[np.bool_],
    child_right_N: NDArray[np.bool_],
    confidence: float = CONFIDENCE,
    groups_N: NDArray[np.int64] | None = None,
) -> Drop:
    """Return the points lost by the child on the same images, with Tango's score interval.

    Valid with few differences: if none of 30 images differs, the ends are +-11 points, not 0. `groups_N`: group of each
    image; with fewer than MIN_GROUPS groups the ends are +-100 points.
    """
    if len(reference_right_N) != len(child_right_N) or len(child_right_N) == 0:
        raise ValueError("a paired comparison needs the same number of images for both, at least one")
    is_lost_N, is_won_N = reference_right_N & ~child_right_N, child_right_N & ~reference_right_N
    lost, won, count = float(is_lost_N.sum()), float(is_won_N.sum()), float(len(child_right_N))
    points, z = (lost - won) / count * 100, normal_quantile(confidence)
    if grouped := image_groups(groups_N):
        if grouped.too_few:
            return Drop(points, -100.0, 100.0, confidence)
        effect = grouped.design_effect(is_lost_N.astype(np.float64) - is_won_N)
        lost, won, count, z = lost / effect, won / effect, count / effect, grouped.quantile(confidence)
    low, high = (_tango_end(lost, won, count, z_score) * 100 for z_score in (z, -z))
    return Drop(points, low, high, confidence)


def smallest_upper_end(count: int, confidence: float = CONFIDENCE, groups_N: NDArray[np.int64] | None = None) -> float:
    """Return the smallest possible upper end of a drop on `count` images, in points: that without any difference.

    `groups_N`: group of each image.
    """
    grouped = image_groups(groups_N)
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
    """Return the share of images whose prediction differs, in points, with Wilson's interval; it bounds any drop."""
    if len(reference_N) != len(child_N) or len(child_N) == 0:
        raise ValueError("a paired comparison needs the same number of images for both, at least one")
    differs_N = reference_N != child_N
    low, high = proportion_interval(differs_N, groups_N, confidence)
    return Drop(float(differs_N.mean()) * 100, low * 100, high * 100, confidence)


def _tango_end(lost: float, won: float, count: float, score: float) -> float:
    """Return the difference at which the score statistic equals `score`; the statistic falls with the difference."""
    below, above = -1.0, 1.0
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        if _tango_score(lost, won, count, middle) > score:
            below = middle
        else:
            above = middle
    return above if score > 0 else below


def _tango_score(lost: float, won: float, count: float, difference: float) -> float:
    """Return the standardised distance of the observed difference from a supposed one (Tango 1998, equation 8)."""
    linear = -lost - won + (2 * count - lost + won) * difference
    constant = -won * difference * (1 - difference)
    share_won = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    variance = count * (2 * share_won + difference * (1 - difference))
    distance = lost - won - count * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def paired_gain(treated: Sequence[float], control: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of treated - control in points, and the ends of Student's 95 % interval over the pairs.

    Accuracies are fractions. A single pair has no spread: both ends equal the mean then, and callers report the
    number of pairs.
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


def two_way_gain(gains_BS: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean gain and the ends of its 95 % interval for B pretrained backbones on S label draws each.

    Both are random, and every backbone is combined with every draw, so 15 gains of 3 backbones are not 15 independent
    ones. The interval is the widest of three: Student's over the backbones' means, valid if backbones differ; over the
    draws' means, valid if draws differ; and that of the two-way random-effects model without repeats, with
    Satterthwaite's degrees of freedom (1946, Biometrics Bulletin 2), valid if both do. Raises ValueError with fewer
    than two of either.
    """
    backbones, draws = gains_BS.shape
    if backbones < 2 or draws < 2:
        raise ValueError(f"{backbones} backbones on {draws} label draws have no interval; use at least two of each")
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
