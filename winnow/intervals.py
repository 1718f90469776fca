"""How far a figure may be off: intervals of proportions, of paired losses, and of gains over seeds.

Proportions carry Wilson's interval; a child is compared with its reference on the same images (top-1: Tango's score
interval; macro F1: a bootstrap), and arms are compared over paired label seeds (Student's t). All are 95 % unless asked
otherwise, and all stay honest where there are few images or few of them differ.

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
from winnow.random_streams import stream_seed

CONFIDENCE = 0.95
BISECTIONS = 60
REPLICATES = 2000
MOST_SKEWED = 1.0
"""Skewness up to which the expansion of Cornish and Fisher is used as it is."""
HALF_A_PAIR = 0.5
WEIGHTS_AT_ONCE = 4_000_000


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


def wilson_interval(right: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a proportion, as fractions."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count} is no proportion")
    z = normal_quantile(confidence)
    share, z2 = right / count, z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * ((share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5)
    # None and all right have exact ends, which rounding misses by a hair.
    return 0.0 if right == 0 else centre - half, 1.0 if right == count else centre + half


def paired_drop(
    reference_right_N: NDArray[np.bool_], child_right_N: NDArray[np.bool_], confidence: float = CONFIDENCE
) -> Drop:
    """Return the points lost by the child on the same images, with Tango's score interval.

    Also right where few images differ: with none of 30 different the ends are +-11 points, not 0.
    """
    if len(reference_right_N) != len(child_right_N) or len(child_right_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    count = len(child_right_N)
    lost = int((reference_right_N & ~child_right_N).sum())
    won = int((child_right_N & ~reference_right_N).sum())
    z = normal_quantile(confidence)
    low, high = (_tango_end(lost, won, count, score) * 100 for score in (z, -z))
    return Drop((lost - won) / count * 100, low, high, confidence)


def least_worst_end(count: int, confidence: float = CONFIDENCE) -> float:
    """Return the points of loss that `count` images cannot rule out even for a child that answers all of them alike."""
    z2 = normal_quantile(confidence) ** 2
    return z2 / (count + z2) * 100


def answered_otherwise(
    reference_N: NDArray[np.int64], child_N: NDArray[np.int64], confidence: float = CONFIDENCE
) -> Drop:
    """Return the share of images whose answer differs, in points, with Wilson's interval: no drop exceeds it."""
    if len(reference_N) != len(child_N) or len(child_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    differ = int((reference_N != child_N).sum())
    low, high = wilson_interval(differ, len(child_N), confidence)
    return Drop(differ / len(child_N) * 100, low * 100, high * 100, confidence)


def _tango_end(lost: int, won: int, count: int, score: float) -> float:
    """Return the difference at which the score statistic is z (the lower end) or -z; it falls with the difference."""
    below, above = -1.0, 1.0
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        if _tango_score(lost, won, count, middle) > score:
            below = middle
        else:
            above = middle
    return above if score > 0 else below


def _tango_score(lost: int, won: int, count: int, difference: float) -> float:
    """Standardised distance of the observed difference from a supposed one (Tango 1998, equation 8)."""
    linear = -lost - won + (2 * count - lost + won) * difference
    constant = -won * difference * (1 - difference)
    share_won = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    variance = count * (2 * share_won + difference * (1 - difference))
    distance = lost - won - count * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def macro_f1_drop(
    labels_N: NDArray[np.int64],
    reference_N: NDArray[np.int64],
    child_N: NDArray[np.int64],
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Drop:
    """Return the points of macro F1 that a child's answers lose against the reference's on the same images.

    Classes are 0 to C - 1. The interval is a Bayesian bootstrap (Rubin 1981, Annals of Statistics 9) of the pairs of
    answers within each class that occurs, with half a pair lost and half a pair won added to each: without these (as in
    Agresti and Min 2005, Statistics in Medicine 24) a class of three images in which nothing differs would count as
    known for certain. Ends beyond 95 % are those of 95 %, moved out (`_moved_out`): 2,000 replicates do not reach far.
    """
    if not len(labels_N) == len(reference_N) == len(child_N) or len(labels_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    classes = np.unique(labels_N)
    nothing = int(max(labels_N.max(), reference_N.max(), child_N.max())) + 1
    imagined = [(c, *pair) for c in classes.tolist() for pair in ((c, nothing), (nothing, c))]
    seen_K3, counts = np.unique(np.stack([labels_N, reference_N, child_N], axis=1), axis=0, return_counts=True)
    cells_K3 = np.concatenate([seen_K3, np.array(imagined)])
    shapes = np.concatenate([counts, np.full(len(imagined), HALF_A_PAIR)])
    support_C = np.bincount(labels_N, minlength=nothing + 1).astype(np.float64)
    rng, drops = np.random.default_rng(stream_seed(seed, "bootstrap")), []
    rows = max(1, min(REPLICATES, WEIGHTS_AT_ONCE // len(cells_K3)))
    for start in range(0, REPLICATES, rows):
        weights_RK = rng.standard_gamma(shapes, (min(rows, REPLICATES - start), len(cells_K3)))
        # Each class keeps its number of images.
        scale_RC = support_C / np.maximum(_sums(weights_RK, cells_K3[:, 0], nothing + 1), 1e-300)
        drops.append(_macro_f1_loss(cells_K3, weights_RK * scale_RC[:, cells_K3[:, 0]], support_C))
    points = float(_macro_f1_loss(seen_K3, counts[None].astype(np.float64), support_C)[0])
    low, high = _moved_out(np.concatenate(drops), confidence)
    return Drop(points * 100, min(low, points) * 100, max(high, points) * 100, confidence)


def _moved_out(drops_R: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the ends of an interval of this confidence from the 2.5 and 97.5 percentiles of the replicates.

    Their distance from the mean grows as the quantiles of Cornish and Fisher (1938) do, z + skewness (z^2 - 1) / 6.
    """
    mean, spread = float(drops_R.mean()), float(drops_R.std())
    low, high = (float(end) for end in np.percentile(drops_R, [2.5, 97.5]))
    skewness = float(((drops_R - mean) ** 3).mean() / spread**3) if spread else 0.0
    skewness = min(max(skewness, -MOST_SKEWED), MOST_SKEWED)

    def quantile(z: float, skew: float) -> float:
        return z + skew * (z**2 - 1) / 6

    near, far = normal_quantile(CONFIDENCE), normal_quantile(confidence)
    below, above = (quantile(far, skew) / quantile(near, skew) for skew in (-skewness, skewness))
    return mean - (mean - low) * below, mean + (high - mean) * above


def _macro_f1_loss(
    cells_K3: NDArray[np.int64], weights_RK: NDArray[np.float64], support_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Macro F1 of the second column minus that of the third, the first being the truth; fractions (R,)."""
    truth_K, losses, occurs_C = cells_K3[:, 0], [], support_C > 0
    for answers_K in (cells_K3[:, 1], cells_K3[:, 2]):
        is_right = answers_K == truth_K
        right_RC = _sums(weights_RK[:, is_right], truth_K[is_right], len(support_C))
        named_RC = _sums(weights_RK, answers_K, len(support_C))
        f1_RC = 2 * right_RC[:, occurs_C] / (support_C + named_RC)[:, occurs_C]
        losses.append(f1_RC.mean(1))
    lost_R: NDArray[np.float64] = losses[0] - losses[1]
    return lost_R


def _sums(weights_RK: NDArray[np.float64], keys_K: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Sum of the columns that share a key, (R, size)."""
    sums = np.zeros((len(weights_RK), size))
    order = np.argsort(keys_K, kind="stable")
    keys, starts = np.unique(keys_K[order], return_index=True)
    if len(keys):
        sums[:, keys] = np.add.reduceat(weights_RK[:, order], starts, axis=1)
    return sums


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
