"""What Pillow opens but reads wrongly, or stumbles over: mended here, or refused with the reason.

    turn_of(opened), check(opened, data)    before the pixels are loaded
    to_rgb(opened, bits)                    8 bits a channel, three channels
    unknown(data)                           what to say of a file that no reader takes

Seen with Pillow 12: EXIF is written again while an image is turned, which fails on tags of odd types; JPEG 2000 of more
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
"""Pillow's readers of what people keep images in. Others start programs (EPS) or take noise for an image (TGA)."""
HEIC_FORMAT = "HEIF"
"""pi-heif's name of it, in Pillow."""
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
DAMAGED = (
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
"""What Pillow's readers raise on broken files."""
KINDS = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"RIFF": "WebP",
    b"BM": "BMP",
}
"""How files of kinds that are read begin."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations but the upright one."""
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, PLANAR, COLOUR_MAP, DNG = 254, 258, 259, 262, 284, 320, 50706
TILE_WIDTH, TILE_HEIGHT = 322, 323
"""Tags of TIFF."""
MAX_TILE = 1 << 20
"""Pixels of a tile of TIFF that may be larger than its picture: the last one of each row and column is filled up."""
CODESTREAM = b"\xff\x4f\xff\x51"
"""How JPEG 2000 begins: 36 bytes of sizes, the number of components, then the bits of each, less one."""


def turn_of(opened: Image.Image) -> Image.Transpose | None:
    """How to turn the loaded picture upright; None where it is, or where EXIF is junk.

    Pillow turns a TIFF while it loads it. All other tags are taken out, since it writes them again then.
    """
    try:
        exif = opened.getexif()
        orientation = exif.get(ORIENTATION)
        turn = TURNS.get(orientation) if isinstance(orientation, int) else None
        for tag in list(exif):
            if tag != ORIENTATION or turn is None:
                del exif[tag]
    except (*DAMAGED, ValueError):
        return None
    return None if isinstance(opened, TiffImageFile) else turn


def check(opened: Image.Image, data: bytes) -> None:
    """Raise ValueError, before anything is loaded, for what Pillow would read wrongly."""
    if isinstance(opened, TiffImageFile):
        _check_tiff(opened)
    if opened.format == "JPEG2000" and len(opened.getbands()) > 1 and (at := data.find(CODESTREAM)) >= 0:
        bits = (data[at + 42] & 0x7F) + 1
        if bits > 8:
            raise ValueError(f"JPEG 2000 with {bits} bits a channel; save it with 8 bits per channel")
    if opened.format == "PPM" and opened.mode == "I" and _white_of_pgm(data) != 65535:
        raise ValueError("PGM whose white is neither 255 nor 65535; save it with 8 bits per channel")
    if opened.format == "PNG" and opened.mode == "P" and b"PLTE" not in data:
        raise ValueError("damaged (its palette is missing)")


def _white_of_pgm(data: bytes) -> int:
    """The fourth word of the header, comments left out; 0 where it is none."""
    words = re.sub(rb"#[^\n]*", b"", data[:1000]).split(maxsplit=4)
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 0


def _check_tiff(opened: TiffImageFile) -> None:
    tags = opened.tag_v2
    if DNG in tags or tags.get(SUBFILE, 0) & 1:
        raise ValueError("a camera's raw file, whose first picture is a thumbnail; export it as JPEG or PNG")
    width, height = tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0)
    if width * height > max(MAX_TILE, 4 * opened.width * opened.height):
        raise ValueError(f"damaged (TIFF with tiles of {width}x{height} pixels in a picture of less)")
    if tags.get(PLANAR) == 2 and max(tags.get(BITS, (8,))) > 8:
        raise ValueError("TIFF in planes of more than 8 bits; save it with 8 bits per channel")
    if COLOUR_MAP in tags and max(tags[COLOUR_MAP]) < 256:
        raise ValueError("TIFF with a palette of 8-bit entries, where 16 are asked for; save it as PNG")


def to_rgb(image: Image.Image, bits: int = ALL_BITS) -> Image.Image:
    """8 bits per channel. Pillow would clip 16-bit gray to white; of it 2^bits - 1 is white here.

    A TIFF that says itself that it holds fewer bits is believed.
    """
    if (gray_HW := gray_16_bits(image)) is not None:
        return Image.fromarray(to_8_bits(gray_HW, bits)).convert("RGB")
    if image.mode.startswith("I;16"):
        own = image.tag_v2[BITS][0] if isinstance(image, TiffImageFile) else ALL_BITS
        gray = to_8_bits(np.asarray(image).astype(np.int32), own)
        return Image.fromarray(255 - gray if _is_inverted(image) else gray).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32-bit or signed pixels, whose range is not known; save it with 8 bits per channel")
    return image.convert("RGB")


def gray_16_bits(image: Image.Image) -> NDArray[np.int32] | None:
    """Return the gray values (H, W) of a loaded image that is stored with 16 bits, 0 being black; None of any other."""
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
    """Return whether a file begins like one of an iPhone; some AVIF does, too, which Pillow reads."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIC


def reads_heic() -> bool:
    """Return whether the package that reads HEIC is there; Pillow knows HEIC_FORMAT then. It turns images upright."""
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


def unknown(data: bytes) -> str:
    """What to say of a file that no reader takes."""
    if not data:
        return "empty"
    if is_heic(data):
        if reads_heic():
            return "damaged, or HEIC of a kind that is not read here; convert it to JPEG or PNG"
        return "HEIC; to read it: pip install 'winnow-vision[heic]', or convert it to JPEG or PNG"
    kind = next((kind for head, kind in KINDS.items() if data.startswith(head)), None)
    if kind:
        return f"damaged, or {kind} of a kind that is not read here; save it anew with 8 bits per channel"
    return "no image format that is read here"
