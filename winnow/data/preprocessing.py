"""Turn an upright image into a square of 8-bit pixels, in ingest, predict, serve and the exported example.

    crop       the short side is resized to S, the centre square is cut out
    pad        the long side is resized to S, the rest is black
    stretch    both sides are resized to S

16-bit gray images often hold a sensor's 10, 12 or 14 bits. `bits` is the number in use: 2^bits - 1 and above is white.
It is estimated from the images (data.bits: auto) or set in params.yaml, once for the data set, and stored in the
model's card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.records import CandidateCard

POLICIES = {
    "crop": "EXIF orientation, RGB, short side to S (bilinear, antialiased), centre crop S x S",
    "pad": "EXIF orientation, RGB, long side to S (bilinear, antialiased), black bars to S x S",
    "stretch": "EXIF orientation, RGB, stretched to S x S (bilinear, antialiased)",
}
"""A description of each way to resize; S stands for the side in pixels."""
ALL_BITS = 16


@dataclass(frozen=True)
class Preprocessing:
    """The way to resize, and the bits in use of 16-bit gray."""

    resize: str = "crop"
    bits: int = ALL_BITS

    @classmethod
    def of(cls, card: CandidateCard) -> Preprocessing:
        """Return the preprocessing that a card names."""
        return cls(card.resize, card.bits)

    @property
    def policy(self) -> str:
        """Return a description; S stands for the side in pixels."""
        gray = "" if self.bits == ALL_BITS else f"; gray of 16 bits: {2**self.bits - 1} is white"
        return POLICIES[self.resize] + gray


DEFAULT_PREPROCESSING = Preprocessing()
"""The default: centre crop, all bits."""


def resize(rgb: Image.Image, image_size: int, policy: str = "crop") -> NDArray[np.uint8]:
    """Resize an upright RGB image to uint8 (S, S, 3). `policy`: crop, pad or stretch."""
    if policy == "pad":
        return np.asarray(_pad(rgb, image_size), dtype=np.uint8)
    if rgb.size != (image_size, image_size):
        box = (0.0, 0.0, float(rgb.width), float(rgb.height))
        if policy == "crop":
            short = min(rgb.size)
            left, top = (rgb.width - short) / 2, (rgb.height - short) / 2
            box = (left, top, left + short, top + short)
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(rgb, dtype=np.uint8)


def _pad(rgb: Image.Image, side: int) -> Image.Image:
    longest = max(rgb.size)
    width, height = (max(1, round(length * side / longest)) for length in rgb.size)
    square = Image.new("RGB", (side, side))
    square.paste(rgb.resize((width, height), Image.Resampling.BILINEAR), ((side - width) // 2, (side - height) // 2))
    return square


def to_8_bits(gray_HW: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Scale gray values to 8 bits; 2^bits - 1 and above is white."""
    return (gray_HW >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)
