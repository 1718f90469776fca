"""Check data sets from arrays: splits and digests equal those of image files with the same pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from winnow.data.arrays import images_from_arrays
from winnow.data.dataset import TEST, TRAIN, VALIDATION, decode
from winnow.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3


def test_keys_and_splits_equal_those_of_image_files() -> None:
    images = images_from_arrays(PIXELS, LABELS, ("a", "b", "c"))
    for position in (0, 17, 59):
        file = io.BytesIO()
        Image.fromarray(PIXELS[position]).save(file, "PNG")
        pixels, key = decode(file.getvalue(), 8)
        assert np.array_equal(pixels, images.images_NHWC[position])
        assert key == images.keys_N16[position].tobytes()
    assert {int(split) for split in images.split_N} == {TRAIN, VALIDATION, TEST}
    assert images.files[3] == "3"
    assert not images.is_grouped
    assert images.training_NHWC is images.images_NHWC


def test_duplicates_share_a_split() -> None:
    images = images_from_arrays(np.concatenate([PIXELS, PIXELS]), np.concatenate([LABELS, LABELS]))
    assert np.array_equal(images.split_N[:60], images.split_N[60:])
    assert np.array_equal(images.groups_N[:60], images.groups_N[60:])
    assert images.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PIXELS.astype(np.float32), LABELS), r"pixels must be uint8 .* not float32 of shape \(60, 8, 8, 3\)"),
        ((PIXELS[..., :1], LABELS), r"not uint8 of shape \(60, 8, 8, 1\)"),
        ((PIXELS[:0], LABELS[:0]), r"not uint8 of shape \(0, 8, 8, 3\)"),
        ((PIXELS[:, :4], LABELS), "images must be square, not 8 x 4 pixels"),
        ((PIXELS, LABELS[:5]), r"labels must be 60 integers, one for each image, not int64 of shape \(5,\)"),
        ((PIXELS, LABELS / 2), "not float64"),
        ((PIXELS, LABELS - 2), "label -2 is below -1"),
        ((PIXELS, LABELS, ("a", "b")), "label 2 has no name: there are 2 classes"),
    ],
)
def test_mismatched_arrays_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        images_from_arrays(*arguments)
