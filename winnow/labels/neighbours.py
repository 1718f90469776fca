"""Suspicious labels by nearest neighbours: near-duplicates of another class, and outliers.

Two images of different labels are near-duplicates if the cosine of their centred features is at least MIN_COSINE and
their pixels pass the test of winnow/data/near_duplicates.py, as they are or mirrored. Both conditions are needed: the
pixel test accepts pairs of round objects on one background, and a small network gives many images of one colour almost
equal features.

An outlier is an image far from all others: the logarithm of the distance to its fifth nearest neighbour, in
standardised features, exceeds the upper quartile of all logarithms by more than twice their interquartile range, as in
Tukey's fences (Exploratory Data Analysis, 1977). Logarithms are used since the distances are skewed. Of a normal
distribution one value in 2,700 exceeds this limit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.data.near_duplicates import BITS, MAX_BITS, MAX_LEVELS, compute_signatures
from winnow.evaluation.nearest_neighbours import cosines_at, nearest_neighbours
from winnow.evaluation.unit_vectors import centred_unit_vectors

MIN_COSINE = 0.7
"""Above that of any two images of different classes in a teacher's features (docs/decisions/0036)."""
COMPARED = 10
"""Nearest neighbours among which an image's near-duplicates are sought."""
OUTLIER_NEIGHBOUR = 5
"""The neighbour whose distance is measured."""
FENCE = 2.0
"""Interquartile ranges above the upper quartile, of the logarithms."""
MIN_IMAGES = 20
"""Fewer images have no usual distance."""
CHUNK = 256


def contradicting_duplicates(
    features_LD: NDArray[np.float32],
    labels_L: NDArray[np.int64],
    images_NHWC: NDArray[np.uint8],
    indices_L: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each image's near-duplicate of another label, as a position among the L, -1 for none; and their cosine.

    Both arrays are (L,). `indices_L`: positions of the images in `images_NHWC`, of which only those that are similar to
    one of another label are read.
    """
    twin_L, cosine_L = np.full(len(labels_L), -1, dtype=np.int64), np.zeros(len(labels_L))
    distances_LK, near_LK = nearest_neighbours(centred_unit_vectors(features_LD), COMPARED)
    cosines_LK = cosines_at(distances_LK)
    first_P, rank_P = np.nonzero((cosines_LK >= MIN_COSINE) & (labels_L[near_LK] != labels_L[:, None]))
    second_P = near_LK[first_P, rank_P]
    same_P = same_picture(images_NHWC, indices_L[first_P], indices_L[second_P])
    for first, second, cosine in zip(
        first_P[same_P].tolist(), second_P[same_P].tolist(), cosines_LK[first_P, rank_P][same_P].tolist(), strict=True
    ):
        for one, other in ((first, second), (second, first)):
            if cosine > cosine_L[one]:
                twin_L[one], cosine_L[one] = other, cosine
    return twin_L, np.minimum(cosine_L, 1.0)


def same_picture(
    images_NHWC: NDArray[np.uint8], first_P: NDArray[np.int64], second_P: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which pairs, bool (P,), are near-duplicates by their pixels, the second one as it is or mirrored."""
    used, position_2P = np.unique(np.concatenate([first_P, second_P]), return_inverse=True)
    first, second = position_2P[: len(first_P)], position_2P[len(first_P) :]
    signatures, mirrored = [], []
    for start in range(0, len(used), CHUNK):
        images_CHWC = np.asarray(images_NHWC[used[start : start + CHUNK]])
        signatures.append(compute_signatures(images_CHWC))
        mirrored.append(compute_signatures(images_CHWC[:, :, ::-1]))
    if not signatures:
        return np.zeros(0, dtype=np.bool_)
    plain_US, mirrored_US = np.concatenate(signatures), np.concatenate(mirrored)
    return _almost_equal(plain_US[first], plain_US[second]) | _almost_equal(plain_US[first], mirrored_US[second])


def _almost_equal(first_PS: NDArray[np.uint8], second_PS: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Apply the test of winnow/data/near_duplicates.py to pairs of signatures."""
    hashed = BITS // 8
    bits_P = np.unpackbits(first_PS[:, :hashed] ^ second_PS[:, :hashed], axis=1).sum(1)
    levels_P = np.abs(first_PS[:, hashed:].astype(np.float32) - second_PS[:, hashed:]).mean(1)
    return np.asarray((bits_P <= MAX_BITS) & (levels_P <= MAX_LEVELS))


def outlier_scores(features_LD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far each image exceeds the fence, (L,): 1 - fence / distance; 0 for images inside the fence."""
    if len(features_LD) < MIN_IMAGES:
        return np.zeros(len(features_LD))
    deviation_D = features_LD.std(0)
    centred_LD = features_LD - features_LD.mean(0)
    standard_LD = np.where(deviation_D > 1e-6, centred_LD / np.maximum(deviation_D, 1e-6), 0).astype(np.float32)
    farthest_L = nearest_neighbours(standard_LD, OUTLIER_NEIGHBOUR)[0][:, -1].astype(np.float64)
    logarithm_L = np.log(np.maximum(farthest_L, 1e-6))
    lower, upper = np.quantile(logarithm_L, [0.25, 0.75])
    beyond_L = logarithm_L - (upper + FENCE * (upper - lower))
    return np.asarray(np.where(beyond_L > 0, 1 - np.exp(-beyond_L), 0.0))
