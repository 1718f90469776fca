"""Which image is for training, validation and test, and whose labels may be seen.

The split is a function of the image's own pixels: the first 8 bytes of their digest, read as a fraction u in [0, 1).

    0 ------------- validation_fraction ------------- + test_fraction ------------- 1
      VALIDATION                         TEST                          TRAIN

So it needs no seed and no stored list, exact duplicates share a split, and nothing moves when images are added: an
old champion never meets its training images in tomorrow's validation split. The price: strata are approximate. Where
the source names a test set, that one is kept, and training images that equal one of its images are left out. An image
without a label cannot be tested on; its stretch of TEST is training.

One exception keeps small data usable: a class without a validation image lends the training image with the smallest
u, the one nearest the border. Only such an image may change its split later.

Nothing here keeps near-duplicates (bursts of one scene) together; only equal pixels count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from winnow.data.images import TEST, TRAIN, VALIDATION, ImageSet

LEFT_OUT = 255
"""Split of training images that equal a test image: stored, but in no split."""


def assign_splits(
    keys_N16: NDArray[np.uint8],
    labels_N: NDArray[np.int64],
    classes: Sequence[str],
    *,
    validation_fraction: float,
    test_fraction: float,
    named_test_N: NDArray[np.bool_],
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Split of every image, uint8 (N,): TRAIN, VALIDATION, TEST or LEFT_OUT; and warnings for people.

    `labels_N` holds -1 where there is no label; `named_test_N` marks what the source itself calls its test set.
    """
    u_N, groups_N = fractions(keys_N16), group_equal(keys_N16)
    split_N = np.full(len(u_N), TRAIN, dtype=np.uint8)
    split_N[u_N < validation_fraction] = VALIDATION
    if not named_test_N.any():
        in_stretch = (u_N >= validation_fraction) & (u_N < validation_fraction + test_fraction)
        split_N[in_stretch & (labels_N >= 0)] = TEST
    split_N[named_test_N] = TEST
    tested_N = np.isin(groups_N, groups_N[split_N == TEST]) & (split_N != TEST)
    split_N[tested_N] = LEFT_OUT
    warnings = []
    if tested_N.any():
        warnings.append(f"{int(tested_N.sum())} images equal an image of the test set in every pixel and are left out")
    for label, name in enumerate(classes):
        if warning := _lend(split_N, u_N, groups_N, labels_N == label, name):
            warnings.append(warning)
    return split_N, tuple(warnings)


def fractions(keys_N16: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The first 8 bytes of each key as a number in [0, 1), (N,)."""
    high_N = np.ascontiguousarray(keys_N16[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return (high_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def group_equal(keys_N16: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Numbers (N,) that are equal where the keys are."""
    halves_N2 = np.ascontiguousarray(keys_N16).view(">u8").astype(np.uint64)
    return np.unique(halves_N2, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _lend(
    split_N: NDArray[np.uint8],
    u_N: NDArray[np.float64],
    groups_N: NDArray[np.int64],
    of_class_N: NDArray[np.bool_],
    name: str,
) -> str | None:
    """Move one image and its duplicates to validation, in place, if the class has none there; the warning for it."""
    if (of_class_N & (split_N == VALIDATION)).any():
        return None
    train = np.flatnonzero(of_class_N & (split_N == TRAIN))
    if len(np.unique(groups_N[train])) < 2:
        return f"class {name!r} has no validation image and too few training images to lend one"
    lent = groups_N[train[np.lexsort((groups_N[train], u_N[train]))[0]]]
    split_N[(groups_N == lent) & (split_N == TRAIN)] = VALIDATION
    return f"class {name!r} had no validation image; the training image nearest the border was lent to it"


def label_budget(images: ImageSet, per_class: int | None, seed: int) -> NDArray[np.int64]:
    """Sorted indices of the TRAIN images whose label may be used: `per_class` of each class, or all (None).

    A class's images are ranked by a digest of the seed and their pixels, so the draw differs per seed and a new image
    displaces at most one. Duplicates come last: the budget is not spent twice on the same pixels while others are left.
    A class below the budget gives all it has.
    """
    labelled = images.indices(TRAIN, labelled=True)
    if per_class is None:
        return labelled
    if per_class < 1:
        raise ValueError(f"a label budget of {per_class} images per class is no budget")
    labels = images.labels_N[labelled]
    chosen = [_first(images, labelled[labels == label], per_class, seed) for label in range(len(images.classes))]
    return np.sort(np.concatenate(chosen))


def _first(images: ImageSet, candidates: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    salt = seed.to_bytes(8, "big", signed=True)
    times_seen: dict[bytes, int] = {}
    ranked = []
    for index in candidates.tolist():
        key = images.keys_N16[index].tobytes()
        times_seen[key] = times_seen.get(key, 0) + 1
        ranked.append((times_seen[key], hashlib.blake2b(key, key=salt, digest_size=16).digest(), index))
    return np.array([index for _, _, index in sorted(ranked)[:count]], dtype=np.int64)


def visible_labels(images: ImageSet, budget: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (N,) as far as anybody may see them: the budget's and the validation split's; -1 everywhere else."""
    visible_N = np.full(len(images.labels_N), -1, dtype=np.int64)
    for allowed in (images.indices(VALIDATION), budget):
        visible_N[allowed] = images.labels_N[allowed]
    return visible_N
