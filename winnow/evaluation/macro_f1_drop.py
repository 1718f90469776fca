"""The macro F1 that a child loses against a reference, with a bootstrap interval, as no formula exists.

A Bayesian bootstrap (Rubin 1981, Annals of Statistics 9) of the pairs of predictions within each class, with half a
lost pair and half a won pair added to each class. Without these (as in Agresti and Min 2005, Statistics in Medicine 24)
a class of three images without any difference would count as known for certain.

Images of a group share one weight, and half a lost and half a won group are added to a class. With few groups the ends
follow Student's t, as those of accuracy do (winnow/evaluation/effective_sample_size.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.evaluation.effective_sample_size import ImageGroups, image_groups
from winnow.evaluation.intervals import CONFIDENCE, normal_quantile
from winnow.random_streams import stream_seed
from winnow.records.selection import Drop

REPLICATES = 2000
MAX_SKEWNESS = 1.0
"""Limit of the skewness in the expansion of Cornish and Fisher."""
ADDED_PAIRS = 0.5
MAX_WEIGHTS = 4_000_000
UNGROUPED = -1
"""Group number of all images that are the only one of their group."""


def macro_f1_drop(
    labels_N: NDArray[np.int64],
    reference_N: NDArray[np.int64],
    child_N: NDArray[np.int64],
    seed: int = 0,
    confidence: float = CONFIDENCE,
    groups_N: NDArray[np.int64] | None = None,
) -> Drop:
    """Return the points of macro F1 that a child's predictions lose against the reference's on the same images.

    Classes are 0 to C - 1; `groups_N`: group of each image. Ends beyond 95 % are those of 95 % moved outwards
    (`_moved_out`), since 2,000 replicates do not reach far. With fewer than MIN_GROUPS groups they are +-100 points.
    """
    if not len(labels_N) == len(reference_N) == len(child_N) or len(labels_N) == 0:
        raise ValueError("a paired comparison needs the same number of images for both, at least one")
    grouped = image_groups(groups_N)
    cells_K4, counts_K = _cells(labels_N, reference_N, child_N, grouped)
    observed_K3 = cells_K4[:, 1:]
    extra_class = int(observed_K3.max()) + 1
    support_C = np.bincount(labels_N, minlength=extra_class + 1).astype(np.float64)
    points = float(_macro_f1_loss(observed_K3, counts_K[None].astype(np.float64), support_C)[0])
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
    labels_N: NDArray[np.int64], reference_N: NDArray[np.int64], child_N: NDArray[np.int64], grouped: ImageGroups | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct (group or UNGROUPED, label, reference, child), (K, 4), and the number of images of each."""
    group_N = np.full(len(labels_N), UNGROUPED)
    if grouped is not None:
        group_N = np.where(grouped.sizes_G[grouped.numbers_N] > 1, grouped.numbers_N, UNGROUPED)
    return np.unique(np.stack([group_N, labels_N, reference_N, child_N], axis=1), axis=0, return_counts=True)


def _group_sizes(labels_N: NDArray[np.int64], grouped: ImageGroups | None) -> dict[int, float]:
    """Return class -> size of an image's group within the class, averaged over its images."""
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
    """Return the drop in macro F1 of REPLICATES draws of weights, fractions (R,)."""
    extra_class = len(support_C) - 1
    added_cells = [(UNGROUPED, c, *pair) for c in group_sizes for pair in ((c, extra_class), (extra_class, c))]
    all_K4 = np.concatenate([cells_K4, np.array(added_cells)])
    truth_K, is_alone_K = all_K4[:, 1], all_K4[:, 0] == UNGROUPED
    shapes = np.concatenate([counts_K, np.full(len(added_cells), ADDED_PAIRS)])[is_alone_K]
    sizes = np.concatenate([np.ones(len(cells_K4)), np.repeat(list(group_sizes.values()), 2)])[is_alone_K]
    groups, group_at_K = np.unique(all_K4[~is_alone_K, 0], return_inverse=True)
    counts_in_groups = np.concatenate([counts_K, np.zeros(len(added_cells))])[~is_alone_K]
    rng, drops = np.random.default_rng(stream_seed(seed, "bootstrap")), []
    rows = max(1, min(REPLICATES, MAX_WEIGHTS // len(all_K4)))
    for start in range(0, REPLICATES, rows):
        count = min(rows, REPLICATES - start)
        weights_RK = np.empty((count, len(all_K4)))
        weights_RK[:, is_alone_K] = rng.standard_gamma(shapes, (count, len(shapes))) * sizes
        if len(groups):
            # One weight per group: its images are drawn together.
            drawn_RG = rng.standard_exponential((count, len(groups)))
            weights_RK[:, ~is_alone_K] = drawn_RG[:, group_at_K.reshape(-1)] * counts_in_groups
        # Every class keeps its number of images.
        scale_RC = support_C / np.maximum(_sums(weights_RK, truth_K, extra_class + 1), 1e-300)
        drops.append(_macro_f1_loss(all_K4[:, 1:], weights_RK * scale_RC[:, truth_K], support_C))
    return np.concatenate(drops)


def _moved_out(drops_R: NDArray[np.float64], far: float) -> tuple[float, float]:
    """Return the ends of an interval at the quantile `far`, extrapolated from the replicates' 95 % interval.

    Their distance from the mean grows as the quantiles of Cornish and Fisher (1938) do, z + skewness (z^2 - 1) / 6.
    """
    mean, spread = float(drops_R.mean()), float(drops_R.std())
    low, high = (float(end) for end in np.percentile(drops_R, [2.5, 97.5]))
    skewness = float(((drops_R - mean) ** 3).mean() / spread**3) if spread else 0.0
    skewness = min(max(skewness, -MAX_SKEWNESS), MAX_SKEWNESS)

    def quantile(z: float, skew: float) -> float:
        return z + skew * (z**2 - 1) / 6

    near = normal_quantile(CONFIDENCE)
    below, above = (quantile(far, skew) / quantile(near, skew) for skew in (-skewness, skewness))
    return mean - (mean - low) * below, mean + (high - mean) * above


def _macro_f1_loss(
    cells_K3: NDArray[np.int64], weights_RK: NDArray[np.float64], support_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return macro F1 of the second column minus that of the third, with the first as truth; fractions (R,)."""
    truth_K, scores, occurs_C = cells_K3[:, 0], [], support_C > 0
    for predictions_K in (cells_K3[:, 1], cells_K3[:, 2]):
        is_correct = predictions_K == truth_K
        correct_RC = _sums(weights_RK[:, is_correct], truth_K[is_correct], len(support_C))
        predicted_RC = _sums(weights_RK, predictions_K, len(support_C))
        f1_RC = 2 * correct_RC[:, occurs_C] / (support_C + predicted_RC)[:, occurs_C]
        scores.append(f1_RC.mean(1))
    drop_R: NDArray[np.float64] = scores[0] - scores[1]
    return drop_R


def _sums(weights_RK: NDArray[np.float64], keys_K: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Return the sums of the columns that share a key, (R, size)."""
    sums = np.zeros((len(weights_RK), size))
    order = np.argsort(keys_K, kind="stable")
    keys, starts = np.unique(keys_K[order], return_index=True)
    if len(keys):
        sums[:, keys] = np.add.reduceat(weights_RK[:, order], starts, axis=1)
    return sums
