"""Limits that a file's header is held to before a decoder allocates or decodes anything.

    check_size(width, height, max_pixels)      sides and pixels, by any source
    check_header(data, max_pixels)             what Pillow looks at too late, or not at all

Pillow tells the size of most formats without decoding. It decodes icons while it opens them, believes the directory of
an icon about the picture inside, and gives a TIFF's tiles the memory that they ask for. A progressive JPEG may have any
number of scans, each of which costs a pass over the whole picture: 400 of them hold a decoder for 10 s.

Not seen from here: the size inside an AVIF file's stream where it differs from the one in its header; libavif refuses
more than 16,384 x 16,384 pixels there.
"""

from __future__ import annotations

import re
import struct

MAX_PIXELS = 100_000_000
MAX_SIDE = 1_000_000
"""Pixels. Pillow's rows end at 2^31 bits; each row of a tall picture costs memory of its own."""
MAX_SCANS = 64
"""Of a JPEG. Encoders write 1 (baseline) to about 12 (progressive)."""

JPEG, ICON, PNG = b"\xff\xd8\xff", b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"
SCAN, END, START = 0xDA, 0xD9, 0xD8
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
"""Of JPEG, but those that stand alone within a scan."""


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError for more pixels, or a longer side, than are decoded."""
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels are more than {max_pixels:,}")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width}x{height} pixels: a side is longer than {MAX_SIDE:,}")


def check_header(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError for an icon whose pictures are too large, or a JPEG of too many scans."""
    if data.startswith(ICON):
        for width, height in _icon_sizes(data):
            check_size(width, height, max_pixels)
    if data.startswith(JPEG) and has_too_many_scans(data):
        raise ValueError(f"a JPEG of more than {MAX_SCANS} scans; save it anew")


def has_too_many_scans(data: bytes) -> bool:
    """Return whether the first picture of a JPEG has more than MAX_SCANS scans (SOS markers)."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return False
    scans, at = 0, 0  # thumbnails, metadata and what follows the picture may hold those bytes too
    while scans <= MAX_SCANS and (found := MARKER.search(data, at)):
        at, kind = found.end(), data[found.end() - 1]
        if kind == END:
            break
        if kind != START:
            scans += kind == SCAN
            at += max(2, int.from_bytes(data[at : at + 2]))
    return scans > MAX_SCANS


def _icon_sizes(data: bytes) -> list[tuple[int, int]]:
    """Sizes of the pictures in an icon, by their own headers; those that cannot be read are left to Pillow."""
    sizes = []
    for entry in range(int.from_bytes(data[4:6], "little")):
        place = data[6 + 16 * entry + 12 : 6 + 16 * entry + 16]
        if len(place) < 4:
            break
        start = int.from_bytes(place, "little")
        head = data[start : start + 24]
        if head.startswith(PNG) and len(head) == 24:
            sizes.append(struct.unpack(">II", head[16:24]))
        elif len(head) == 24:
            is_old = head[:4] == b"\x0c\0\0\0"
            width, height = struct.unpack("<HH", head[4:8]) if is_old else struct.unpack("<ii", head[4:12])
            sizes.append((abs(width), abs(height) // 2))  # the picture, and its mask below it
    return sizes
