"""Data sets in memory, from arrays of pixels and labels."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from winnow.config import check_settings
from winnow.config.section import Count, Number, Section, Seed
from winnow.data.dataset import TRAIN, ImageSet, digest_pixels
from winnow.data.splits import assign_splits, draw_label_budget
from winnow.errors import DataError

log = logging.getLogger(__name__)


class _Fractions(Section):
    """The shares of the images in the validation and in the test split."""

    validation_fraction: Annotated[Number, Field(gt=0, le=0.5)]
    test_fraction: Annotated[Number, Field(ge=0, le=0.5)]


class _LabelLimit(Section):
    """The labels of a class that remain, and the seed of the draw."""

    per_class: Count
    seed: Seed


def images_from_arrays(
    pixels_NHWC: NDArray[np.uint8],
    labels: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    *,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.15,
) -> ImageSet:
    """Return a data set of images in memory. The hash of its pixels assigns each image to a split.

    `pixels_NHWC`: uint8 (N, S, S, 3), RGB. `labels`: integers (N,), -1 for no label; None: no image has one. `classes`:
    the name of each label; by default its number. Raises DataError where shapes, types or labels do not fit,
    ConfigError for fractions outside (0, 0.5]; `test_fraction` may be 0.
    """
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    checked = check_settings(_Fractions, fractions, "images_from_arrays")
    pixels_NHWC = np.asarray(pixels_NHWC)
    if pixels_NHWC.dtype != np.uint8 or pixels_NHWC.ndim != 4 or pixels_NHWC.shape[3] != 3 or not len(pixels_NHWC):
        raise DataError(
            f"pixels must be uint8 of shape (images, size, size, 3), not {pixels_NHWC.dtype} of shape "
            f"{pixels_NHWC.shape}"
        )
    count, height, width = pixels_NHWC.shape[:3]
    if height != width:
        raise DataError(f"images must be square, not {width} x {height} pixels; crop or resize them")
    labels_N = np.full(count, -1, np.int64) if labels is None else _check_labels(np.asarray(labels), count)
    names = _class_names(labels_N, classes)
    keys = b"".join(digest_pixels(image.tobytes(), width, height) for image in pixels_NHWC)
    keys_N16 = np.frombuffer(keys, dtype=np.uint8).reshape(-1, 16)
    split_N, warnings = assign_splits(
        keys_N16,
        labels_N,
        names,
        validation_fraction=checked.validation_fraction,
        test_fraction=checked.test_fraction,
        named_test_N=np.zeros(count, dtype=np.bool_),
    )
    for warning in warnings:
        log.warning("%s", warning)
    return ImageSet(None, pixels_NHWC, labels_N, split_N, keys_N16, names)


def limit_labels(images: ImageSet, per_class: int, seed: int = 0) -> ImageSet:
    """Return the same images with at most `per_class` training labels of each class; the others become -1.

    The draw depends on the seed and the pixels alone. Raises ConfigError for numbers that cannot be used.
    """
    checked = check_settings(_LabelLimit, {"per_class": per_class, "seed": seed}, "limit_labels")
    labels_N = np.array(images.labels_N)
    hidden = np.setdiff1d(images.indices(TRAIN), draw_label_budget(images, checked.per_class, checked.seed))
    labels_N[hidden] = -1
    return dataclasses.replace(images, labels_N=labels_N)


def _class_names(labels_N: NDArray[np.int64], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the labels. Raises DataError for labels without a name, and for names that occur twice."""
    largest = int(labels_N.max())
    if classes is None:
        if largest >= len(labels_N):
            raise DataError(
                f"label {largest} is not below the number of images, {len(labels_N)}: labels count the classes from 0. "
                "For other numbers pass `numpy.unique(labels, return_inverse=True)`: its first result as `classes`, "
                "made text, and its second as `labels`"
            )
        return tuple(str(label) for label in range(largest + 1))
    names = tuple(str(name) for name in classes)
    if largest >= len(names):
        raise DataError(f"label {largest} has no name: there are {len(names)} classes")
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"two classes have the name {repeated[0]!r}; each needs a name of its own")
    return names


def _check_labels(labels_N: NDArray[np.generic], count: int) -> NDArray[np.int64]:
    if labels_N.shape != (count,) or not np.issubdtype(labels_N.dtype, np.integer):
        raise DataError(
            f"labels must be {count} integers, one for each image, not {labels_N.dtype} of shape {labels_N.shape}"
        )
    integers_N = labels_N.astype(np.int64)
    if integers_N.min() < -1:
        raise DataError(f"label {integers_N.min()} is below -1, which stands for no label")
    return integers_N
