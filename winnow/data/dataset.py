"""The stored data set, one memory-mapped uint8 array, and the function that decodes an image file.

`decode` is shared by ingest and predict, so a file gives the same pixels in training and in production: EXIF
orientation applied, RGB, resized to a square with antialiased bilinear interpolation (winnow.data.preprocessing).

A stored data set is a folder:

    images.npy   uint8  (N, S, S, 3)     labels.npy  int64 (N,), -1: no label
    split.npy    uint8  (N,)             keys.npy    uint8 (N, 16), digest of the decoded pixels
    files.txt    one path a line, JSON-quoted, in the same order          classes.json   list of names
    groups.npy   int64 (N,), equal for images of one group; only with data.group_by
    preprocessing.json       the preprocessing that gave these pixels: resize, bits
    training.npy uint8  (N, T, T, 3), optional: the same squares at data.training_size, T > S, for random crops
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from winnow.data.header_limits import MAX_PIXELS, check_header, check_size
from winnow.data.image_formats import (
    FORMATS,
    HEIC_FORMAT,
    PILLOW_ERRORS,
    check_readable,
    explain_unreadable,
    gray_16_bits,
    is_heic,
    reads_heic,
    to_rgb,
    upright_transpose,
)
from winnow.data.preprocessing import ALL_BITS, DEFAULT_PREPROCESSING, Preprocessing, resize
from winnow.errors import ArtifactError
from winnow.records import read_json

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = ("train", "validation", "test")
TRAINING_FILE = "training.npy"
MAX_DARK_GRAY = 4096
"""16-bit gray with all values below this is hashed with all its bits: its high bytes are nearly equal in all images."""
PREPROCESSING_FILE = "preprocessing.json"


class DecodedImage(NamedTuple):
    """A decoded image file."""

    rgb: Image.Image
    """The upright image at full size, 8 bits a channel."""
    key: bytes
    """The 16-byte digest of its pixels; it does not depend on the gray range."""
    is_clipped: bool
    """True where gray values exceed the range."""
    is_heic: bool


def decode(
    data: bytes, image_size: int, preprocessing: Preprocessing = DEFAULT_PREPROCESSING
) -> tuple[NDArray[np.uint8], bytes]:
    """Decode an image file to pixels uint8 (S, S, 3) and the 16-byte digest of the full-size RGB pixels.

    Raises ValueError with the reason when the file cannot be used.
    """
    image = open_rgb(data, preprocessing.bits)
    return resize(image.rgb, image_size, preprocessing.resize), image.key


def open_rgb(data: bytes, bits: int = ALL_BITS, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file to the upright RGB image at full size and the digest of its pixels.

    In 16-bit gray 2^bits - 1 is white. An image of more than `max_pixels` is not decoded. Raises ValueError with the
    reason when the file cannot be used.
    """
    check_header(data, max_pixels)
    try:
        with _open_image(data) as image:
            check_size(image.width, image.height, max_pixels)
            transpose = upright_transpose(image)
            check_readable(image, data)
            image.load()
            gray_HW, is_heic_file = gray_16_bits(image), image.format == HEIC_FORMAT
            rgb = _make_upright(to_rgb(image, bits), transpose)
            full_range = rgb if gray_HW is None or bits == ALL_BITS else _make_upright(to_rgb(image), transpose)
        highest = 0 if gray_HW is None else int(gray_HW.max())
        is_dark = gray_HW is not None and highest < MAX_DARK_GRAY
        hashed = full_range.tobytes() if gray_HW is None or not is_dark else gray_HW.astype("<u2").tobytes()
        key = digest_pixels(hashed, full_range.width, full_range.height)
    except UnidentifiedImageError as error:
        raise ValueError(explain_unreadable(data)) from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except MemoryError as error:
        raise ValueError("needs more memory to decode than there is, or is damaged") from error
    except PILLOW_ERRORS as error:
        raise ValueError(f"damaged ({error})") from error
    return DecodedImage(rgb, key, highest >= 2**bits, is_heic_file)


def _open_image(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if not is_heic(data) or not reads_heic():
            raise
        return Image.open(io.BytesIO(data), formats=(HEIC_FORMAT,))


def _make_upright(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def digest_pixels(pixels: bytes, width: int, height: int) -> bytes:
    """Return the 16-byte digest of an image's pixels, which depends on its size, too."""
    return hashlib.blake2b(pixels, digest_size=16, key=f"{width}x{height}".encode()).digest()


def number_equal_keys(keys_N16: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return numbers (N,) that are equal where the keys are."""
    halves_N2 = np.ascontiguousarray(keys_N16).view(">u8").astype(np.uint64)
    return np.unique(halves_N2, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def spread_indices(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` positions among `count`, evenly spread, int64."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


@dataclass(frozen=True)
class ImageSet:
    """Images with labels and splits: memory maps of a stored data set, or arrays in memory."""

    folder: Path | None
    """Folder of the stored data set; None for arrays in memory."""
    images_NHWC: NDArray[np.uint8]
    """Pixels, uint8 (N, S, S, 3), RGB."""
    labels_N: NDArray[np.int64]
    """Labels, int64 (N,); -1 for no label."""
    split_N: NDArray[np.uint8]
    """Split of each image, uint8 (N,): 0 train, 1 validation, 2 test."""
    keys_N16: NDArray[np.uint8]
    """128-bit hash of each image's pixels, uint8 (N, 16)."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of their labels."""

    @cached_property
    def files(self) -> list[str]:
        """Return the path of each image, relative to the source; its position where there is no source."""
        if self.folder is None:
            return [str(position) for position in range(len(self.labels_N))]
        return [json.loads(line) for line in (self.folder / "files.txt").read_text(encoding="utf-8").splitlines()]

    @cached_property
    def groups_N(self) -> NDArray[np.int64]:
        """Return numbers (N,) that are equal for images of one group, or equal in every pixel."""
        if (path := self._stored("groups.npy")) is None:
            return number_equal_keys(self.keys_N16)
        groups_N: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return groups_N

    def _stored(self, name: str) -> Path | None:
        """Return the path of an optional file of the stored data set; None where it does not exist."""
        path = None if self.folder is None else self.folder / name
        return path if path is not None and path.is_file() else None

    @property
    def is_grouped(self) -> bool:
        """Return whether data.group_by defines the groups."""
        return self._stored("groups.npy") is not None

    def group_count(self, indices: NDArray[np.int64]) -> int | None:
        """Return the number of groups of these images; None without data.group_by."""
        return len(np.unique(self.groups_N[indices])) if self.is_grouped else None

    @cached_property
    def training_NHWC(self) -> NDArray[np.uint8]:
        """Return the images at the size that random crops are taken from; `images_NHWC` where none are stored."""
        if (path := self._stored(TRAINING_FILE)) is None:
            return self.images_NHWC
        training_NHWC: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        return training_NHWC

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing that gave these pixels."""
        path = self._stored(PREPROCESSING_FILE)
        return DEFAULT_PREPROCESSING if path is None else Preprocessing(**read_json(path))

    @property
    def image_size(self) -> int:
        """Return the side of the square in pixels."""
        return int(self.images_NHWC.shape[1])

    def indices(self, split: int, labelled: bool | None = None) -> NDArray[np.int64]:
        """Return the positions of a split's images: all, those with a label (True) or those without (False)."""
        selected_N = self.split_N == split
        if labelled is not None:
            selected_N = selected_N & ((self.labels_N >= 0) == labelled)
        return np.flatnonzero(selected_N).astype(np.int64)


def load_images(folder: Path) -> ImageSet:
    """Open the data set that ingest wrote. Raises ArtifactError for a missing file or arrays of unequal length."""
    arrays = {}
    for name in ("images", "labels", "split", "keys"):
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(
                f"{path} is missing or damaged ({error}); delete {folder} and run winnow again"
            ) from error
    if len({len(array) for array in arrays.values()}) != 1:
        raise ArtifactError(f"{folder}: its arrays differ in length; delete it and run winnow again")
    classes = read_json(folder / "classes.json")
    return ImageSet(folder, arrays["images"], arrays["labels"], arrays["split"], arrays["keys"], tuple(classes))
