"""How an upright image becomes a square of 8-bit pixels: the same in ingest, predict, serve and the exported example.

    crop       the short side is resized to S, the centre square is cut out
    pad        the long side is resized to S, what is missing is black
    stretch    both sides are resized to S

Gray images of 16 bits hold what a sensor gave: often 10, 12 or 14 bits. `bits` says how many count, so that 2^bits - 1
is white; what is above is white, too. It is taken from the images (data.bits: auto) or from params.yaml, once for all
of them, and the model's card holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

POLICIES = {
    "crop": "EXIF orientation, RGB, short side to S (bilinear, antialiased), centre crop S x S",
    "pad": "EXIF orientation, RGB, long side to S (bilinear, antialiased), black bars to S x S",
    "stretch": "EXIF orientation, RGB, stretched to S x S (bilinear, antialiased)",
}
"""What each way does, S being the side in pixels."""
ALL_BITS = 16


@dataclass(frozen=True)
class Preprocessing:
    """What an image goes through besides decoding."""

    resize: str = "crop"
    bits: int = ALL_BITS

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Preprocessing:
        """Return what a card or a stored data set says; earlier versions, which say nothing, cropped."""
        return cls(card.get("resize", "crop"), card.get("bits", ALL_BITS))

    @property
    def policy(self) -> str:
        """In words, S being the side in pixels."""
        gray = "" if self.bits == ALL_BITS else f"; gray of 16 bits: {2**self.bits - 1} is white"
        return POLICIES[self.resize] + gray


AS_SHIPPED = Preprocessing()
"""The centre crop, and all bits."""


def resize(rgb: Image.Image, image_size: int, how: str = "crop") -> NDArray[np.uint8]:
    """Return an upright RGB image as uint8 (S, S, 3)."""
    if how == "pad":
        return np.asarray(_padded(rgb, image_size), dtype=np.uint8)
    if rgb.size != (image_size, image_size):
        box = (0.0, 0.0, float(rgb.width), float(rgb.height))
        if how == "crop":
            short = min(rgb.size)
            left, top = (rgb.width - short) / 2, (rgb.height - short) / 2
            box = (left, top, left + short, top + short)
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(rgb, dtype=np.uint8)


def _padded(rgb: Image.Image, side: int) -> Image.Image:
    longest = max(rgb.size)
    width, height = (max(1, round(length * side / longest)) for length in rgb.size)
    square = Image.new("RGB", (side, side))
    square.paste(rgb.resize((width, height), Image.Resampling.BILINEAR), ((side - width) // 2, (side - height) // 2))
    return square


def to_8_bits(gray_HW: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Return gray of which 2^bits - 1 is white with 8 bits; what is above is white."""
    return (gray_HW >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)
