"""Which image is for training, validation and test, and whose labels may be seen.

The split is a function of the image's own pixels: the first 8 bytes of their digest, read as a fraction u in [0, 1).

    0 ------------- validation_fraction ------------- + test_fraction ------------- 1
      VALIDATION                         TEST                          TRAIN

So it needs no seed and no stored list, exact duplicates share a split, and nothing moves when images are added: an
old champion never meets its training images in tomorrow's validation split. The price: strata are approximate. Where
the source names a test set, that one is kept, and training images that equal one of its images are left out. An image
without a label cannot be tested on; its stretch of TEST is training.

With `data.group_by` the digest is that of the group's name, so that a burst, a patient or a video stays together. What
equals a test or validation image in every pixel, though it is of another group, is left out of training.

One exception keeps small classes usable: what a class has too little of, training or validation images, is lent by the
other splits, the image (or group) nearest the border. Only what is lent may change its split later.

Nothing here knows near-duplicates of which no group tells; only equal pixels count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, group_equal
from winnow.errors import ConfigError

CHOOSING_SALT = b"the half that chooses"
LEFT_OUT = 255
"""Split of images that would leak, those that equal a test image above all: stored, but in no split."""


def assign_splits(
    keys_N16: NDArray[np.uint8],
    labels_N: NDArray[np.int64],
    classes: Sequence[str],
    *,
    validation_fraction: float,
    test_fraction: float,
    named_test_N: NDArray[np.bool_],
    group_keys_N16: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Split of every image, uint8 (N,): TRAIN, VALIDATION, TEST or LEFT_OUT; and warnings for people.

    `labels_N` holds -1 where there is no label; `named_test_N` marks what the source itself calls its test set.
    `group_keys_N16` are digests of the groups that share a split; without them each image is one.
    """
    twins_N = group_equal(keys_N16)
    u_N = fractions(keys_N16 if group_keys_N16 is None else group_keys_N16)
    units_N = twins_N if group_keys_N16 is None else group_equal(group_keys_N16)
    split_N = np.full(len(u_N), TRAIN, dtype=np.uint8)
    split_N[u_N < validation_fraction] = VALIDATION
    if not named_test_N.any():
        in_stretch = (u_N >= validation_fraction) & (u_N < validation_fraction + test_fraction)
        split_N[in_stretch & (labels_N >= 0)] = TEST
    split_N[named_test_N] = TEST
    warnings = _leave_out(split_N, units_N, twins_N)
    may_lend_N = ~named_test_N
    for label, name in enumerate(classes):
        warnings += _lend(split_N, u_N, units_N, labels_N == label, may_lend_N, name)
    return split_N, tuple(warnings)


def _leave_out(split_N: NDArray[np.uint8], units_N: NDArray[np.int64], twins_N: NDArray[np.int64]) -> list[str]:
    """Take out, in place, what would leak into the test or validation split; the warnings for it."""
    warnings = []
    is_test_N = split_N == TEST
    equal_N = np.isin(twins_N, twins_N[is_test_N]) & ~is_test_N
    split_N[equal_N] = LEFT_OUT
    if equal_N.any():
        warnings.append(f"{int(equal_N.sum())} images equal an image of the test set in every pixel and are left out")
    if units_N is twins_N:
        return warnings
    torn_N = np.isin(units_N, units_N[is_test_N]) & ~is_test_N & ~equal_N
    split_N[torn_N] = LEFT_OUT
    if torn_N.any():
        warnings.append(f"{int(torn_N.sum())} images are of a group that has test images and are left out")
    seen_N = np.isin(twins_N, twins_N[split_N == VALIDATION]) & (split_N == TRAIN)
    split_N[seen_N] = LEFT_OUT
    if seen_N.any():
        warnings.append(
            f"{int(seen_N.sum())} training images equal a validation image of another group in every pixel "
            "and are left out"
        )
    return warnings


def fractions(keys_N16: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The first 8 bytes of each key as a number in [0, 1), (N,)."""
    high_N = np.ascontiguousarray(keys_N16[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return (high_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def joined(one_N: NDArray[np.int64], other_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers (N,) that are equal for images which share a number in either, directly or through others."""
    numbers_N = np.arange(len(one_N))
    while True:
        before_N = numbers_N
        for keys_N in (one_N, other_N):
            _, group_N = np.unique(keys_N, return_inverse=True)
            least = np.full(int(group_N.max(initial=-1)) + 1, len(one_N))
            np.minimum.at(least, group_N, numbers_N)
            numbers_N = least[group_N]
        if np.array_equal(numbers_N, before_N):
            return numbers_N.astype(np.int64)


def _lend(
    split_N: NDArray[np.uint8],
    u_N: NDArray[np.float64],
    units_N: NDArray[np.int64],
    of_class_N: NDArray[np.bool_],
    may_lend_N: NDArray[np.bool_],
    name: str,
) -> list[str]:
    """See, in place, that a class has training and validation images if it has two units at all; the warnings."""
    warnings = []
    if not (of_class_N & (split_N == TRAIN)).any():
        # Validation lends its last, too, where the drawn test set has none: nothing can be learned without.
        for lender, least in ((VALIDATION, 2), (TEST, 1), (VALIDATION, 1)):
            units = _in_order(units_N, u_N, of_class_N & (split_N == lender) & may_lend_N)
            if len(units) >= least:
                split_N[(units_N == units[-1]) & (split_N == lender) & may_lend_N] = TRAIN
                warnings.append(f"class {name!r} had no training image; the one nearest the border was lent to it")
                break
    if (of_class_N & (split_N == VALIDATION)).any():
        return warnings
    for lender, least in ((TRAIN, 2), (TEST, 1)):
        units = _in_order(units_N, u_N, of_class_N & (split_N == lender) & may_lend_N)
        if len(units) >= least:
            split_N[(units_N == units[0]) & (split_N == lender) & may_lend_N] = VALIDATION
            what = "training image" if lender == TRAIN else "drawn test image"
            warnings.append(f"class {name!r} had no validation image; the {what} nearest the border was lent to it")
            return warnings
    return [*warnings, f"class {name!r} has no validation image and too few training images to lend one"]


def _in_order(units_N: NDArray[np.int64], u_N: NDArray[np.float64], among_N: NDArray[np.bool_]) -> list[int]:
    """Units among these images, by their place between 0 and 1."""
    found: NDArray[np.int64] = np.flatnonzero(among_N)
    ordered = units_N[found[np.lexsort((units_N[found], u_N[found]))]]
    return list(dict.fromkeys(ordered.tolist()))


def choosing_half(images: ImageSet) -> NDArray[np.bool_]:
    """Return which validation images choose among many (trials, rungs), bool (V,); the others confirm the choice.

    A function of the pixels alone, as the split is, and independent of it; images of a group share a half, that of the
    smallest digest among them. Classes are spread by chance. Both halves have an image: where one would have none, the
    unit of the smallest digest goes there. Raises ConfigError where validation has fewer than two such units.
    """
    units_N, validation = images.groups_N, images.indices(VALIDATION)
    wanted = set(units_N[validation].tolist())
    smallest: dict[int, bytes] = {}
    for at in np.flatnonzero(np.isin(units_N, list(wanted))).tolist():
        unit, key = int(units_N[at]), images.keys_N16[at].tobytes()
        smallest[unit] = min(key, smallest.get(unit, key))
    digests = {unit: hashlib.blake2b(key, key=CHOOSING_SALT, digest_size=8).digest() for unit, key in smallest.items()}
    if len(digests) < 2:
        raise ConfigError(
            f"{len(validation)} validation images cannot choose and confirm: one image (or group) chooses and another "
            "confirms; add images, or raise data.validation_fraction"
        )
    chooses = {unit: digest[-1] % 2 == 0 for unit, digest in digests.items()}
    if len(set(chooses.values())) == 1:
        first = min(digests, key=digests.__getitem__)
        chooses[first] = not chooses[first]
    return np.array([chooses[unit] for unit in units_N[validation].tolist()], dtype=bool)


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
