"""Decode a chunk of files in this process: read, check, convert and resize each. An unusable file gets a reason.

It imports numpy and Pillow, not torch, so that a decoding process starts quickly.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import open_rgb
from winnow.data.header_limits import MAX_PIXELS
from winnow.data.image_items import Content, read_file
from winnow.data.preprocessing import DEFAULT_PREPROCESSING, Preprocessing, resize


@dataclass(frozen=True)
class DecodedChunk:
    """The pixels of a chunk of files, of which K can be used."""

    usable: list[int]
    """The positions of the K usable files."""
    pixels_KHWC: NDArray[np.uint8]
    keys_K16: NDArray[np.uint8]
    reasons: dict[int, str]
    """The reason why a file cannot be used, by its position."""
    training_KHWC: NDArray[np.uint8]
    """The same squares at a second, larger size; (K, 0, 0, 3) without one."""
    sides_K2: NDArray[np.int64]
    """The short and the long side of the original images in pixels."""
    clipped: int
    """The number of images with gray values above the range of data.bits."""
    heic: int
    """The number of HEIC images, which an extra package decodes."""


@dataclass(frozen=True)
class DecodeSettings:
    """The settings of a decoder: the sizes of the squares in pixels, preprocessing and limits."""

    image: int
    larger: int = 0
    """The size of a second square; 0 for none."""
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING
    max_pixels: int = MAX_PIXELS
    """The largest original image; a larger one is rejected before it is decoded."""


def decode_chunk(contents: list[Content], sides: DecodeSettings) -> DecodedChunk:
    """Decode files in this process: read, check, convert and resize each."""
    usable: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    larger: list[NDArray[np.uint8]] = []
    keys, reasons, original_sides, clipped, heic = [], {}, [], 0, 0
    preprocessing = sides.preprocessing
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # the reason for a rejected file says it already
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
        for position, content in enumerate(contents):
            try:
                if isinstance(content, ValueError):
                    raise content
                data = content if isinstance(content, bytes) else read_file(content)
                image = open_rgb(data, preprocessing.bits, sides.max_pixels)
            except ValueError as error:
                reasons[position] = str(error)
                continue
            usable.append(position)
            keys.append(image.key)
            original_sides.append(sorted(image.rgb.size))
            clipped += image.is_clipped
            heic += image.is_heic
            pixels.append(resize(image.rgb, sides.image, preprocessing.resize))
            if sides.larger:
                larger.append(resize(image.rgb, sides.larger, preprocessing.resize))
    return DecodedChunk(
        usable,
        _stack(pixels, len(usable), sides.image),
        np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16),
        reasons,
        _stack(larger, len(usable), sides.larger),
        np.array(original_sides, dtype=np.int64).reshape(-1, 2),
        clipped,
        heic,
    )


def _stack(pixels: list[NDArray[np.uint8]], count: int, side: int) -> NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.zeros((count, side, side, 3), dtype=np.uint8)
