"""Correct, or reject with a reason, the image files that Pillow opens but reads wrongly.

    upright_transpose(image), check_readable(image, data)      before the pixels are loaded
    to_rgb(image, bits)                     8 bits a channel, three channels
    explain_unreadable(data)                the reason why no reader accepts a file

Seen with Pillow 12: it rewrites EXIF while it rotates an image, which fails on tags of unusual types; JPEG 2000 of more
than 8 bits a channel overflows (white becomes black); 12 bits are not scaled; 0 may mean white; planes of 16 bits and
palettes of 8-bit entries are mixed up; the first picture of a camera's raw file is its thumbnail.
"""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from winnow.data.preprocessing import ALL_BITS, to_8_bits

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "QOI", "ICO")
"""The Pillow readers in use. Others start programs (EPS) or accept noise as an image (TGA)."""
HEIC_FORMAT = "HEIF"
"""The name under which pi-heif registers HEIC with Pillow."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""The exceptions that Pillow's readers raise on broken files."""
SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"RIFF": "WebP",
    b"BM": "BMP",
}
"""Supported formats by the first bytes of a file."""
ORIENTATION = 0x0112
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by EXIF orientation; 1 is upright already."""
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, PLANAR, COLOUR_MAP, DNG = 254, 258, 259, 262, 284, 320, 50706
TILE_WIDTH, TILE_HEIGHT = 322, 323
"""TIFF tags."""
MAX_TILE = 1 << 20
"""The pixels that a TIFF tile may always have. Tiles may exceed a small picture: the last of each row is padded."""
CODESTREAM = b"\xff\x4f\xff\x51"
"""The start of a JPEG 2000 codestream; 36 bytes of sizes follow, the number of components, then each one's bits - 1."""


def upright_transpose(image: Image.Image) -> Image.Transpose | None:
    """Return the operation that makes the loaded image upright; None where it is upright or its EXIF is invalid.

    Pillow itself rotates a TIFF on load. It also rewrites all EXIF tags then, so all others are removed from `image`.
    """
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION)
        transpose = TRANSPOSES.get(orientation) if isinstance(orientation, int) else None
        for tag in list(exif):
            if tag != ORIENTATION or transpose is None:
                del exif[tag]
    except (*PILLOW_ERRORS, ValueError):
        return None
    return None if isinstance(image, TiffImageFile) else transpose


def check_readable(image: Image.Image, data: bytes) -> None:
    """Raise ValueError for an image that Pillow would read wrongly. Call it before the pixels are loaded."""
    if isinstance(image, TiffImageFile):
        _check_tiff(image)
    if image.format == "JPEG2000" and len(image.getbands()) > 1 and (start := data.find(CODESTREAM)) >= 0:
        bits = (data[start + 42] & 0x7F) + 1
        if bits > 8:
            raise ValueError(f"JPEG 2000 with {bits} bits a channel; save it with 8 bits per channel")
    if image.format == "PPM" and image.mode == "I" and _pgm_maximum(data) != 65535:
        raise ValueError("PGM whose white is neither 255 nor 65535; save it with 8 bits per channel")
    if image.format == "PNG" and image.mode == "P" and b"PLTE" not in data:
        raise ValueError("damaged (its palette is missing)")


def _pgm_maximum(data: bytes) -> int:
    """Return the value of white: the fourth word of the header, without comments; 0 where it is no number."""
    words = re.sub(rb"#[^\n]*", b"", data[:1000]).split(maxsplit=4)
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 0


def _check_tiff(image: TiffImageFile) -> None:
    tags = image.tag_v2
    if DNG in tags or tags.get(SUBFILE, 0) & 1:
        raise ValueError("a camera's raw file, whose first picture is a thumbnail; export it as JPEG or PNG")
    width, height = tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0)
    if width * height > max(MAX_TILE, 4 * image.width * image.height):
        raise ValueError(f"damaged (TIFF with tiles of {width}x{height} pixels in a smaller picture)")
    if tags.get(PLANAR) == 2 and max(tags.get(BITS, (8,))) > 8:
        raise ValueError("TIFF in planes of more than 8 bits; save it with 8 bits per channel")
    if COLOUR_MAP in tags and max(tags[COLOUR_MAP]) < 256:
        raise ValueError("TIFF with a palette of 8-bit entries, where TIFF requires 16; save it as PNG")


def to_rgb(image: Image.Image, bits: int = ALL_BITS) -> Image.Image:
    """Convert a loaded image to RGB with 8 bits a channel. Pillow would clip 16-bit gray to white.

    2^bits - 1 is white in 16-bit gray; a TIFF that declares fewer bits keeps its own range.
    """
    if (gray_HW := gray_16_bits(image)) is not None:
        return Image.fromarray(to_8_bits(gray_HW, bits)).convert("RGB")
    if image.mode.startswith("I;16"):
        declared_bits = image.tag_v2[BITS][0] if isinstance(image, TiffImageFile) else ALL_BITS
        gray = to_8_bits(np.asarray(image).astype(np.int32), declared_bits)
        return Image.fromarray(255 - gray if _is_inverted(image) else gray).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit or signed pixels, whose range is unknown; save it with 8 bits per channel")
    return image.convert("RGB")


def gray_16_bits(image: Image.Image) -> NDArray[np.int32] | None:
    """Return the gray values (H, W) of a loaded 16-bit gray image, 0 being black; None for any other image."""
    is_pgm = image.mode == "I" and image.format == "PPM"
    if not is_pgm and not image.mode.startswith("I;16"):
        return None
    if isinstance(image, TiffImageFile) and image.tag_v2.get(BITS, (ALL_BITS,))[0] != ALL_BITS:
        return None
    gray_HW = np.asarray(image).astype(np.int32)
    return (2**ALL_BITS - 1) - gray_HW if _is_inverted(image) else gray_HW


def _is_inverted(image: Image.Image) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0


def is_heic(data: bytes) -> bool:
    """Return whether a file begins like HEIC; some AVIF files do, too, which Pillow reads."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS


def reads_heic() -> bool:
    """Return whether pi-heif is installed, and register it with Pillow. It makes images upright itself."""
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


def explain_unreadable(data: bytes) -> str:
    """Return the reason why no reader accepts a file."""
    if not data:
        return "empty"
    if is_heic(data):
        if reads_heic():
            return "damaged, or an unsupported kind of HEIC; convert it to JPEG or PNG"
        return "HEIC; to read it: pip install 'winnow-vision[heic]', or convert it to JPEG or PNG"
    format_name = next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)
    if format_name:
        return f"damaged, or an unsupported kind of {format_name}; save it again with 8 bits per channel"
    return "not a supported image format"
