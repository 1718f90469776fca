"""Draw thumbnails: pairs of near-duplicate images side by side in one picture, for the page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHOWN, COLUMNS = 16, 4
"""Pairs at most, and pairs per row."""
SIDE, GAP = 96, 12
"""Pixels: side of a thumbnail, and gap between pairs."""


def draw_pairs(images_NHWC: NDArray[np.uint8], positions: Sequence[Sequence[int]]) -> bytes:
    """Return a PNG of the first SHOWN pairs, row by row, the held-out image on the left; b"" without a pair."""
    shown = positions[:SHOWN]
    if not shown:
        return b""
    columns, rows = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (columns * (2 * SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for number, pair in enumerate(shown):
        left, top = number % COLUMNS * (2 * SIDE + GAP), number // COLUMNS * (SIDE + GAP)
        for side, position in enumerate(pair):
            sheet.paste(thumbnail(images_NHWC[position]), (left + side * SIDE, top))
    return png_bytes(sheet)


def png_bytes(picture: Image.Image) -> bytes:
    """Return the picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(image_HWC: NDArray[np.uint8]) -> Image.Image:
    """Return the image at SIDE x SIDE pixels; small ones keep their hard pixels."""
    pixels = Image.fromarray(np.asarray(image_HWC))
    kind = Image.Resampling.NEAREST if pixels.width < SIDE else Image.Resampling.LANCZOS
    return pixels.resize((SIDE, SIDE), kind)
