"""Print class and probability of image files: python predict.py IMAGE ...

It needs onnxruntime, numpy and Pillow, pi-heif for HEIC, but not winnow; its pixels equal winnow's bit for bit. A file
that cannot be used is reported on standard error and sets the exit status to 2; the others are still predicted. `winnow
export` writes this file beside model.onnx and card.json.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of the text after them."""
MAX_PIXELS = 100_000_000
HERE = Path(__file__).resolve().parent
PILLOW_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ArithmeticError, MemoryError, struct.error, Image.DecompressionBombError),
)
"""The exceptions that Pillow raises on broken files."""


def load_pixels(path: str, card: dict[str, Any]) -> Any:
    """Return pixels uint8 (S, S, 3): upright, 8 bits a channel, resized by the card's policy."""
    side, policy = card["image_size"], card.get("resize", "crop")
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("not a file")  # opening a named pipe waits for ever
    with Image.open(path) as original:
        if original.width * original.height > MAX_PIXELS:
            raise ValueError(f"{original.width}x{original.height} pixels are more than {MAX_PIXELS:,}")
        image = _to_rgb(original, ImageOps.exif_transpose(original), card.get("bits", 16))
    width, height = image.size
    if policy == "pad":
        width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
        square = Image.new("RGB", (side, side))
        square.paste(
            image.resize((width, height), Image.Resampling.BILINEAR), ((side - width) // 2, (side - height) // 2)
        )
        return np.asarray(square)
    short = min(width, height)
    left, top = ((width - short) / 2, (height - short) / 2) if policy == "crop" else (0, 0)
    box = (left, top, width - left, height - top)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _to_rgb(original: Image.Image, upright: Image.Image, bits: int) -> Image.Image:
    """Return an RGB image. 2^bits - 1 is white in 16-bit gray; a TIFF that declares fewer bits keeps its own range."""
    if original.mode.startswith("I;16") or (original.mode, original.format) == ("I", "PPM"):
        tags = getattr(original, "tag_v2", {})
        declared_bits, is_inverted = tags.get(258, (16,))[0], tags.get(262) == 0
        gray = np.asarray(upright).astype(np.int32)
        if declared_bits == 16:
            gray = 65535 - gray if is_inverted else gray
            return Image.fromarray((gray >> bits - 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        gray = (gray >> max(0, declared_bits - 8)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(255 - gray if is_inverted else gray).convert("RGB")
    if original.mode in ("I", "F"):
        raise ValueError("32-bit or signed pixels, whose range is unknown")
    return upright.convert("RGB")


def main(paths: list[str]) -> int:
    """Print a line for each path; return 2 if one cannot be used, else 0."""
    for stream in (sys.stdout, sys.stderr):
        _use_utf8(stream)
    try:
        import pi_heif  # HEIC of an iPhone

        pi_heif.register_heif_opener()
    except ImportError:
        pass
    card, status = json.loads((HERE / "card.json").read_text(encoding="utf-8")), 0
    session = onnxruntime.InferenceSession(HERE / "model.onnx")
    for path in paths:
        try:
            pixels = load_pixels(path, card)
        except PILLOW_ERRORS as error:
            print(f"{_printable(path)}: cannot be used ({_printable(str(error))})", file=sys.stderr)
            status = 2
            continue
        logits = session.run(None, {"pixels": pixels[None]})[0][0].astype(np.float64) / card.get("temperature", 1)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        name = card["classes"][probabilities.argmax()]
        print(f"{_printable(path)}\t{_printable(name)}\t{probabilities.max():.4f}")
    return status


def _printable(text: str) -> str:
    """Return text on one line, with control characters, which a terminal would obey, as escapes."""
    return "".join(ascii(c)[1:-1] if c in BIDI or category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _use_utf8(stream: Any) -> None:
    """Let a stream print any file name: a C locale lacks most characters, and names may be bytes that are no text."""
    is_ascii_or_utf8 = stream.encoding.lower().replace("-", "") in ("ascii", "usascii", "ansi_x3.41968", "646", "utf8")
    if is_ascii_or_utf8:
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    else:
        stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
