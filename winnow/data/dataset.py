"""Images on disk as one uint8 array, read by mmap, and the one function that turns a file into pixels.

`decode` is shared by ingest and predict: EXIF orientation honoured, RGB, resized with antialiased bilinear
interpolation to a square (winnow.data.preprocessing). The same file gives the same pixels in training and in
production.

A stored data set is a folder:

    images.npy   uint8  (N, S, S, 3)     labels.npy  int64 (N,), -1: no label
    split.npy    uint8  (N,)             keys.npy    uint8 (N, 16), digest of the decoded pixels
    files.txt    one path a line, JSON-quoted, in the same order          classes.json   list of names
    groups.npy   int64 (N,), equal for images of one group; only with data.group_by
    preprocessing.json       how files became these pixels: resize, bits
    training.npy uint8  (N, T, T, 3), the same squares at data.training_size, T > S, for random crops; where it is kept
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
    DAMAGED,
    FORMATS,
    HEIC_FORMAT,
    check,
    gray_16_bits,
    is_heic,
    reads_heic,
    to_rgb,
    turn_of,
    unknown,
)
from winnow.data.preprocessing import ALL_BITS, AS_SHIPPED, Preprocessing, resize
from winnow.errors import ArtifactError
from winnow.records import read_json

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = ("train", "validation", "test")
TRAINING = "training.npy"
DARK = 4096
"""16-bit gray without a larger value is told by all its bits: its high bytes are nearly the same in every image."""
PREPROCESSING = "preprocessing.json"


class Opened(NamedTuple):
    """An image file, read."""

    rgb: Image.Image
    """Upright, full size, 8 bits a channel."""
    key: bytes
    """16-byte digest of its pixels, whatever the range of gray is."""
    is_clipped: bool
    """Whether gray values are above the range."""
    is_heic: bool


def decode(data: bytes, image_size: int, preprocessing: Preprocessing = AS_SHIPPED) -> tuple[NDArray[np.uint8], bytes]:
    """Bytes of an image file -> pixels uint8 (S, S, 3) and the 16-byte digest of the full-size RGB pixels.

    Raises ValueError with the reason when the file cannot be used.
    """
    opened = open_rgb(data, preprocessing.bits)
    return resize(opened.rgb, image_size, preprocessing.resize), opened.key


def open_rgb(data: bytes, bits: int = ALL_BITS, max_pixels: int = MAX_PIXELS) -> Opened:
    """Bytes of an image file -> the upright RGB image, full size, and the digest of its pixels.

    Of 16-bit gray 2^bits - 1 is white. Nothing of more than `max_pixels` is decoded. Raises ValueError with the reason
    when the file cannot be used.
    """
    check_header(data, max_pixels)
    try:
        with _opened(data) as opened:
            check_size(opened.width, opened.height, max_pixels)
            turn = turn_of(opened)
            check(opened, data)
            opened.load()
            gray_HW, of_iphone = gray_16_bits(opened), opened.format == HEIC_FORMAT
            rgb = _upright(to_rgb(opened, bits), turn)
            whole = rgb if gray_HW is None or bits == ALL_BITS else _upright(to_rgb(opened), turn)
        highest = 0 if gray_HW is None else int(gray_HW.max())
        is_dark = gray_HW is not None and highest < DARK
        of = whole.tobytes() if gray_HW is None or not is_dark else gray_HW.astype("<u2").tobytes()
        key = _digest(of, whole)
    except UnidentifiedImageError as error:
        raise ValueError(unknown(data)) from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except MemoryError as error:
        raise ValueError("asks for more memory than there is to decode it, or is damaged") from error
    except DAMAGED as error:
        raise ValueError(f"damaged ({error})") from error
    return Opened(rgb, key, highest >= 2**bits, of_iphone)


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if not is_heic(data) or not reads_heic():
            raise
        return Image.open(io.BytesIO(data), formats=(HEIC_FORMAT,))


def _upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _digest(pixels: bytes, image: Image.Image) -> bytes:
    return hashlib.blake2b(pixels, digest_size=16, key=f"{image.width}x{image.height}".encode()).digest()


def group_equal(keys_N16: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Numbers (N,) that are equal where the keys are."""
    halves_N2 = np.ascontiguousarray(keys_N16).view(">u8").astype(np.uint64)
    return np.unique(halves_N2, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many positions among `count`, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


@dataclass(frozen=True)
class ImageSet:
    """A stored data set. Arrays are memory maps; nothing is read before it is used."""

    folder: Path
    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    split_N: NDArray[np.uint8]
    keys_N16: NDArray[np.uint8]
    classes: tuple[str, ...]

    @cached_property
    def files(self) -> list[str]:
        """Where each image came from, relative to the source."""
        return [json.loads(line) for line in (self.folder / "files.txt").read_text(encoding="utf-8").splitlines()]

    @cached_property
    def groups_N(self) -> NDArray[np.int64]:
        """Numbers that are equal for images that belong together: of one group, or equal in every pixel."""
        stored = self.folder / "groups.npy"
        if stored.is_file():
            groups_N: NDArray[np.int64] = np.load(stored, allow_pickle=False)
            return groups_N
        return group_equal(self.keys_N16)

    @property
    def is_grouped(self) -> bool:
        """Whether data.group_by says which images belong together."""
        return (self.folder / "groups.npy").is_file()

    def group_count(self, indices: NDArray[np.int64]) -> int | None:
        """Return in how many groups these images lie; None without data.group_by."""
        return len(np.unique(self.groups_N[indices])) if self.is_grouped else None

    @cached_property
    def training_NHWC(self) -> NDArray[np.uint8]:
        """The same images at the size that random crops are taken from; those of `images_NHWC` where none is kept."""
        stored = self.folder / TRAINING
        if not stored.is_file():
            return self.images_NHWC
        training_NHWC: NDArray[np.uint8] = np.load(stored, mmap_mode="r", allow_pickle=False)
        return training_NHWC

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How files became these pixels."""
        stored = self.folder / PREPROCESSING
        return Preprocessing.of(read_json(stored)) if stored.is_file() else AS_SHIPPED

    @property
    def image_size(self) -> int:
        """Side of the square, pixels."""
        return int(self.images_NHWC.shape[1])

    def indices(self, split: int, labelled: bool | None = None) -> NDArray[np.int64]:
        """Positions of a split's images: all, only those with a label (True) or only those without (False)."""
        chosen = self.split_N == split
        if labelled is not None:
            chosen = chosen & ((self.labels_N >= 0) == labelled)
        return np.flatnonzero(chosen).astype(np.int64)


def load_images(folder: Path) -> ImageSet:
    """Open what ingest wrote. Raises ArtifactError when a file is missing or the arrays do not fit together."""
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
