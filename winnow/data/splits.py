"""Assign images to training, validation and test, and draw the label budget.

The split is a function of the image's own pixels: the first 8 bytes of their digest, read as a fraction u in [0, 1).

    0 ------------- validation_fraction ------------- + test_fraction ------------- 1
      VALIDATION                         TEST                          TRAIN

So it needs no seed and no stored list, exact duplicates share a split, and no image moves when others are added: a
champion's training images never enter a later validation split. The price is that strata are approximate. A test set
that the source defines is kept, and training images that equal one of its images are left out. An image without a label
cannot be tested on; in the range of TEST it goes to training.

With `data.group_by` the group's name is digested instead, so that a burst, a patient or a video stays together. An
image that equals a test or validation image of another group in every pixel is left out of training.

One exception keeps small classes usable: a class without training or validation images borrows the image (or group)
nearest the border from another split. Only borrowed images may change their split later.

Near-duplicates without a group key are not detected here; only equal pixels count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet, number_equal_keys
from winnow.errors import ConfigError

SELECTION_SALT = b"the half that chooses"
LEFT_OUT = 255
"""The split of images that would leak, mostly those that equal a test image: they are stored, but in no split."""


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
    """Return the split of every image, uint8 (N,): TRAIN, VALIDATION, TEST or LEFT_OUT; and warnings for the user.

    `labels_N` holds -1 for no label; `named_test_N` marks the test set that the source defines. `group_keys_N16` are
    digests of the groups that share a split; without them each distinct image is a group of its own.
    """
    duplicates_N = number_equal_keys(keys_N16)
    u_N = key_fractions(keys_N16 if group_keys_N16 is None else group_keys_N16)
    groups_N = duplicates_N if group_keys_N16 is None else number_equal_keys(group_keys_N16)
    split_N = np.full(len(u_N), TRAIN, dtype=np.uint8)
    split_N[u_N < validation_fraction] = VALIDATION
    if not named_test_N.any():
        in_test_range = (u_N >= validation_fraction) & (u_N < validation_fraction + test_fraction)
        split_N[in_test_range & (labels_N >= 0)] = TEST
    split_N[named_test_N] = TEST
    warnings = _leave_out_leaks(split_N, groups_N, duplicates_N)
    movable_N = ~named_test_N
    for label, name in enumerate(classes):
        warnings += _fill_empty_splits(split_N, u_N, groups_N, labels_N == label, movable_N, name)
    if group_keys_N16 is not None:  # a borrowed group may hold a copy of an image of another group
        warnings += _leave_out_leaks(split_N, groups_N, duplicates_N)
    validated = set(labels_N[split_N == VALIDATION].tolist())
    warnings += [
        f"class {name!r} has no validation image and too few training images to move one there"
        for label, name in enumerate(classes)
        if label not in validated
    ]
    return split_N, tuple(warnings)


def _leave_out_leaks(
    split_N: NDArray[np.uint8], groups_N: NDArray[np.int64], duplicates_N: NDArray[np.int64]
) -> list[str]:
    """Leave out, in place, images that would leak into the test or validation split; return the warnings."""
    warnings = []
    is_test_N, is_in_use_N = split_N == TEST, split_N != LEFT_OUT
    equals_test_N = np.isin(duplicates_N, duplicates_N[is_test_N]) & ~is_test_N & is_in_use_N
    split_N[equals_test_N] = LEFT_OUT
    if equals_test_N.any():
        warnings.append(
            f"{int(equals_test_N.sum())} images equal an image of the test set in every pixel and are left out"
        )
    if groups_N is duplicates_N:
        return warnings
    in_test_group_N = np.isin(groups_N, groups_N[is_test_N]) & ~is_test_N & ~equals_test_N & is_in_use_N
    split_N[in_test_group_N] = LEFT_OUT
    if in_test_group_N.any():
        warnings.append(f"{int(in_test_group_N.sum())} images are of a group that has test images and are left out")
    equals_validation_N = np.isin(duplicates_N, duplicates_N[split_N == VALIDATION]) & (split_N == TRAIN)
    split_N[equals_validation_N] = LEFT_OUT
    if equals_validation_N.any():
        warnings.append(
            f"{int(equals_validation_N.sum())} training images equal a validation image of another group in every "
            "pixel and are left out"
        )
    return warnings


def key_fractions(keys_N16: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the first 8 bytes of each key as a number in [0, 1), (N,)."""
    high_N = np.ascontiguousarray(keys_N16[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    return (high_N >> np.uint64(11)).astype(np.float64) * 2.0**-53


def merge_groups(first_N: NDArray[np.int64], second_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers (N,) that are equal for images connected by an equal number in either, also through others."""
    numbers_N = np.arange(len(first_N))
    while True:
        previous_N = numbers_N
        for keys_N in (first_N, second_N):
            _, group_N = np.unique(keys_N, return_inverse=True)
            smallest = np.full(int(group_N.max(initial=-1)) + 1, len(first_N))
            np.minimum.at(smallest, group_N, numbers_N)
            numbers_N = smallest[group_N]
        if np.array_equal(numbers_N, previous_N):
            return numbers_N.astype(np.int64)


def _fill_empty_splits(
    split_N: NDArray[np.uint8],
    u_N: NDArray[np.float64],
    groups_N: NDArray[np.int64],
    in_class_N: NDArray[np.bool_],
    movable_N: NDArray[np.bool_],
    name: str,
) -> list[str]:
    """Give a class of two groups or more training and validation images, in place; return the warnings."""
    warnings = []
    if not (in_class_N & (split_N == TRAIN)).any():
        # Even the last validation image goes to training where the drawn test set has none.
        for donor, minimum in ((VALIDATION, 2), (TEST, 1), (VALIDATION, 1)):
            groups = _groups_by_fraction(groups_N, u_N, in_class_N & (split_N == donor) & movable_N)
            if len(groups) >= minimum:
                split_N[(groups_N == groups[-1]) & (split_N == donor) & movable_N] = TRAIN
                warnings.append(f"class {name!r} had no training image; the one nearest the border was moved there")
                break
    if (in_class_N & (split_N == VALIDATION)).any():
        return warnings
    for donor, minimum in ((TRAIN, 2), (TEST, 1)):
        groups = _groups_by_fraction(groups_N, u_N, in_class_N & (split_N == donor) & movable_N)
        if len(groups) >= minimum:
            split_N[(groups_N == groups[0]) & (split_N == donor) & movable_N] = VALIDATION
            moved = "training image" if donor == TRAIN else "drawn test image"
            warnings.append(f"class {name!r} had no validation image; the {moved} nearest the border was moved there")
            break
    return warnings


def _groups_by_fraction(
    groups_N: NDArray[np.int64], u_N: NDArray[np.float64], selected_N: NDArray[np.bool_]
) -> list[int]:
    """Return the groups of the selected images, ordered by their fraction u."""
    indices: NDArray[np.int64] = np.flatnonzero(selected_N)
    ordered = groups_N[indices[np.lexsort((groups_N[indices], u_N[indices]))]]
    return list(dict.fromkeys(ordered.tolist()))


def selection_half(images: ImageSet) -> NDArray[np.bool_]:
    """Return a mask, bool (V,), of the validation images that select among trials or rungs; the others confirm.

    The half depends on the pixels alone, as the split does, and is independent of it. Images of a group share a half,
    that of the smallest digest among them. Classes are spread by chance. Where one half would be empty, the group of
    the smallest digest moves there. Raises ConfigError where validation has fewer than two groups.
    """
    groups_N, validation = images.groups_N, images.indices(VALIDATION)
    validation_groups = set(groups_N[validation].tolist())
    smallest: dict[int, bytes] = {}
    for index in np.flatnonzero(np.isin(groups_N, list(validation_groups))).tolist():
        group, key = int(groups_N[index]), images.keys_N16[index].tobytes()
        smallest[group] = min(key, smallest.get(group, key))
    digests = {
        group: hashlib.blake2b(key, key=SELECTION_SALT, digest_size=8).digest() for group, key in smallest.items()
    }
    if len(digests) < 2:
        raise ConfigError(
            f"{len(validation)} validation images cannot select and confirm: one image (or group) selects and another "
            "confirms; add images, or raise data.validation_fraction"
        )
    selects = {group: digest[-1] % 2 == 0 for group, digest in digests.items()}
    if len(set(selects.values())) == 1:
        first = min(digests, key=digests.__getitem__)
        selects[first] = not selects[first]
    return np.array([selects[group] for group in groups_N[validation].tolist()], dtype=bool)


def draw_label_budget(images: ImageSet, per_class: int | None, seed: int) -> NDArray[np.int64]:
    """Return the sorted indices of the TRAIN images whose label may be used: `per_class` of each class, or all (None).

    A class's images are ranked by a digest of the seed and their pixels, so the draw differs per seed and a new image
    displaces at most one. Duplicates rank last, so that the budget is not spent twice on the same pixels. A class with
    fewer images gives all. Raises ValueError for a budget below 1.
    """
    labelled = images.indices(TRAIN, labelled=True)
    if per_class is None:
        return labelled
    if per_class < 1:
        raise ValueError(f"a label budget must be 1 image per class or more, not {per_class}")
    labels = images.labels_N[labelled]
    drawn = [_draw_images(images, labelled[labels == label], per_class, seed) for label in range(len(images.classes))]
    return np.sort(np.concatenate(drawn))


def known_label_indices(images: ImageSet, per_class: int | None, seed: int) -> NDArray[np.int64]:
    """Return the sorted indices of all images whose label is known: the label budget, and the validation split."""
    budget = draw_label_budget(images, per_class, seed)
    return np.sort(np.concatenate([budget, images.indices(VALIDATION, labelled=True)]))


def _draw_images(images: ImageSet, candidates: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` of the candidates, by the rank of their digests, duplicates last."""
    salt = seed.to_bytes(8, "big", signed=True)
    times_seen: dict[bytes, int] = {}
    ranked = []
    for index in candidates.tolist():
        key = images.keys_N16[index].tobytes()
        times_seen[key] = times_seen.get(key, 0) + 1
        ranked.append((times_seen[key], hashlib.blake2b(key, key=salt, digest_size=16).digest(), index))
    return np.array([index for _, _, index in sorted(ranked)[:count]], dtype=np.int64)


def visible_labels(images: ImageSet, budget: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels (N,) that may be used: the budget's and the validation split's; -1 everywhere else."""
    visible_N = np.full(len(images.labels_N), -1, dtype=np.int64)
    for allowed in (images.indices(VALIDATION), budget):
        visible_N[allowed] = images.labels_N[allowed]
    return visible_N
