"""How much macro F1 a child's answers lose against a reference's: a bootstrap, as no formula gives its interval.

A Bayesian bootstrap (Rubin 1981, Annals of Statistics 9) of the pairs of answers within each class that occurs, with
half a pair lost and half a pair won added to each: without these (as in Agresti and Min 2005, Statistics in Medicine
24) a class of three images in which nothing differs would count as known for certain.

Images of a group get one weight together, and what is added to a class is half a group lost and half a group won. With
few groups the ends follow Student's t, as those of accuracy do (winnow/evaluation/effective_sample_size.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.evaluation.effective_sample_size import Clusters, clusters
from winnow.evaluation.intervals import CONFIDENCE, Drop, normal_quantile
from winnow.random_streams import stream_seed

REPLICATES = 2000
MOST_SKEWED = 1.0
"""Skewness up to which the expansion of Cornish and Fisher is used as it is."""
HALF_A_PAIR = 0.5
WEIGHTS_AT_ONCE = 4_000_000
ALONE = -1
"""In place of a group: images that share theirs with no other one."""


def macro_f1_drop(
    labels_N: NDArray[np.int64],
    reference_N: NDArray[np.int64],
    child_N: NDArray[np.int64],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    groups_N: NDArray[np.int64] | None = None,
) -> Drop:
    """Return the points of macro F1 that a child's answers lose against the reference's on the same images.

    Classes are 0 to C - 1; `groups_N`: group of each image. Ends beyond 95 % are those of 95 %, moved out
    (`_moved_out`): 2,000 replicates do not reach far. With fewer than LEAST_GROUPS groups they are +-100 points.
    """
    if not len(labels_N) == len(reference_N) == len(child_N) or len(labels_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    grouped = clusters(groups_N)
    cells_K4, counts_K = _cells(labels_N, reference_N, child_N, grouped)
    seen_K3 = cells_K4[:, 1:]
    nothing = int(seen_K3.max()) + 1
    support_C = np.bincount(labels_N, minlength=nothing + 1).astype(np.float64)
    points = float(_macro_f1_loss(seen_K3, counts_K[None].astype(np.float64), support_C)[0])
    if grouped is not None and grouped.too_few:
        return Drop(points * 100, -100.0, 100.0, confidence)
    drops_R = _replicates(cells_K4, counts_K, support_C, _group_sizes(labels_N, grouped), seed)
    quantile = normal_quantile(confidence)
    if grouped is not None:
        # The weights' variance is (G - 1) / (G + 1) of the unbiased one.
        quantile = grouped.quantile(confidence) * max(1.0, (grouped.groups + 1) / (grouped.groups - 1)) ** 0.5
    low, high = _moved_out(drops_R, quantile)
    return Drop(points * 100, min(low, points) * 100, max(high, points) * 100, confidence)


def _cells(
    labels_N: NDArray[np.int64], reference_N: NDArray[np.int64], child_N: NDArray[np.int64], grouped: Clusters | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different (group or ALONE, label, reference, child), (K, 4), and how many images have each."""
    of_N = np.full(len(labels_N), ALONE)
    if grouped is not None:
        of_N = np.where(grouped.sizes_G[grouped.numbers_N] > 1, grouped.numbers_N, ALONE)
    return np.unique(np.stack([of_N, labels_N, reference_N, child_N], axis=1), axis=0, return_counts=True)


def _group_sizes(labels_N: NDArray[np.int64], grouped: Clusters | None) -> dict[int, float]:
    """Return for each class how many of its images lie in a group, as its images see it on average."""
    classes = np.unique(labels_N).tolist()
    if grouped is None:
        return dict.fromkeys(classes, 1.0)
    counts = {label: np.bincount(grouped.numbers_N[labels_N == label]).astype(np.float64) for label in classes}
    return {label: float((counts_G**2).sum() / counts_G.sum()) for label, counts_G in counts.items()}


def _replicates(
    cells_K4: NDArray[np.int64],
    counts_K: NDArray[np.int64],
    support_C: NDArray[np.float64],
    group_sizes: dict[int, float],
    seed: int,
) -> NDArray[np.float64]:
    """Return what macro F1 loses in each of REPLICATES draws of weights, fractions."""
    nothing = len(support_C) - 1
    imagined = [(ALONE, c, *pair) for c in group_sizes for pair in ((c, nothing), (nothing, c))]
    all_K4 = np.concatenate([cells_K4, np.array(imagined)])
    truth_K, is_alone_K = all_K4[:, 1], all_K4[:, 0] == ALONE
    shapes = np.concatenate([counts_K, np.full(len(imagined), HALF_A_PAIR)])[is_alone_K]
    sizes = np.concatenate([np.ones(len(cells_K4)), np.repeat(list(group_sizes.values()), 2)])[is_alone_K]
    groups, group_at_K = np.unique(all_K4[~is_alone_K, 0], return_inverse=True)
    counts_in_groups = np.concatenate([counts_K, np.zeros(len(imagined))])[~is_alone_K]
    rng, drops = np.random.default_rng(stream_seed(seed, "bootstrap")), []
    rows = max(1, min(REPLICATES, WEIGHTS_AT_ONCE // len(all_K4)))
    for start in range(0, REPLICATES, rows):
        count = min(rows, REPLICATES - start)
        weights_RK = np.empty((count, len(all_K4)))
        weights_RK[:, is_alone_K] = rng.standard_gamma(shapes, (count, len(shapes))) * sizes
        if len(groups):
            # One weight a group: its images are drawn together or not at all.
            drawn_RG = rng.standard_exponential((count, len(groups)))
            weights_RK[:, ~is_alone_K] = drawn_RG[:, group_at_K.reshape(-1)] * counts_in_groups
        # Each class keeps its number of images.
        scale_RC = support_C / np.maximum(_sums(weights_RK, truth_K, nothing + 1), 1e-300)
        drops.append(_macro_f1_loss(all_K4[:, 1:], weights_RK * scale_RC[:, truth_K], support_C))
    return np.concatenate(drops)


def _moved_out(drops_R: NDArray[np.float64], far: float) -> tuple[float, float]:
    """Return the ends of an interval that reaches to the quantile `far`, from the replicates' 2.5 and 97.5 percentiles.

    Their distance from the mean grows as the quantiles of Cornish and Fisher (1938) do, z + skewness (z^2 - 1) / 6.
    """
    mean, spread = float(drops_R.mean()), float(drops_R.std())
    low, high = (float(end) for end in np.percentile(drops_R, [2.5, 97.5]))
    skewness = float(((drops_R - mean) ** 3).mean() / spread**3) if spread else 0.0
    skewness = min(max(skewness, -MOST_SKEWED), MOST_SKEWED)

    def quantile(z: float, skew: float) -> float:
        return z + skew * (z**2 - 1) / 6

    near = normal_quantile(CONFIDENCE)
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
