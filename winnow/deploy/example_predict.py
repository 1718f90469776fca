"""Class and probability of image files: python predict.py IMAGE ... (onnxruntime, numpy, Pillow; pi-heif for HEIC)

A file that cannot be used is named on standard error, and the exit status is 2; the others are answered. `winnow
export` leaves this file beside model.onnx and card.json; it needs no winnow, and makes the same pixels to the bit.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
UNUSABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ArithmeticError, MemoryError, struct.error, Image.DecompressionBombError),
)
"""What Pillow raises on broken files."""


def pixels_of(path: str, card: dict[str, Any]) -> Any:
    """Return pixels uint8 (S, S, 3): upright, 8 bits a channel, made square as the card says."""
    side, how = card["image_size"], card.get("resize", "crop")
    with Image.open(path) as opened:
        image = _with_8_bits(opened, ImageOps.exif_transpose(opened), card.get("bits", 16))
    width, height = image.size
    if how == "pad":
        width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
        square = Image.new("RGB", (side, side))
        square.paste(
            image.resize((width, height), Image.Resampling.BILINEAR), ((side - width) // 2, (side - height) // 2)
        )
        return np.asarray(square)
    short = min(width, height)
    left, top = ((width - short) / 2, (height - short) / 2) if how == "crop" else (0, 0)
    box = (left, top, width - left, height - top)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _with_8_bits(opened: Image.Image, upright: Image.Image, bits: int) -> Image.Image:
    """Return an RGB image. Of gray with 16 bits 2^bits - 1 is white; a TIFF that says its own bits is believed."""
    if opened.mode.startswith("I;16") or (opened.mode, opened.format) == ("I", "PPM"):
        tags = getattr(opened, "tag_v2", {})
        own, is_inverted = tags.get(258, (16,))[0], tags.get(262) == 0
        gray = np.asarray(upright).astype(np.int32)
        if own == 16:
            gray = 65535 - gray if is_inverted else gray
            return Image.fromarray((gray >> bits - 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        gray = (gray >> max(0, own - 8)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(255 - gray if is_inverted else gray).convert("RGB")
    if opened.mode in ("I", "F"):
        raise ValueError("32-bit or signed pixels, whose range is not known")
    return upright.convert("RGB")


def main(paths: list[str]) -> int:
    """Print a line for each path; return 2 where one could not be used."""
    for stream in (sys.stdout, sys.stderr):
        _speak_utf8(stream)
    try:
        import pi_heif  # HEIC of an iPhone

        pi_heif.register_heif_opener()
    except ImportError:
        pass
    card, status = json.loads((HERE / "card.json").read_text(encoding="utf-8")), 0
    session = onnxruntime.InferenceSession(HERE / "model.onnx")
    for path in paths:
        try:
            pixels = pixels_of(path, card)
        except UNUSABLE as error:
            print(f"{path}: cannot be used ({error})", file=sys.stderr)
            status = 2
            continue
        logits = session.run(None, {"pixels": pixels[None]})[0][0].astype(np.float64) / card.get("temperature", 1)
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{path}\t{card['classes'][chances.argmax()]}\t{chances.max():.4f}")
    return status


def _speak_utf8(stream: Any) -> None:
    """In a C locale a stream knows no umlauts; file names may be bytes that are no text."""
    is_narrow = stream.encoding.lower().replace("-", "") in ("ascii", "usascii", "ansi_x3.41968", "646", "utf8")
    if is_narrow:
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    else:
        stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
