"""Check limits on a file's header before a decoder allocates or decodes anything.

    check_size(width, height, max_pixels)      sides and pixels, from any source
    check_header(data, max_pixels)             limits that Pillow checks too late, or not at all

Pillow reads the size of most formats without decoding. It decodes icons while it opens them, trusts an icon's directory
about the picture inside, and allocates the memory that a TIFF's tiles ask for. A progressive JPEG may have any number
of scans, each of which costs a pass over the whole picture: 400 of them keep a decoder busy for 10 s.

Not checked here: the size inside an AVIF stream where it differs from the header; libavif limits it to
16,384 x 16,384 pixels.
"""

from __future__ import annotations

import re
import struct

MAX_PIXELS = 100_000_000
MAX_SIDE = 1_000_000
"""The longest side in pixels. Pillow's rows end at 2^31 bits, and each row of a tall picture is allocated by itself."""
MAX_SCANS = 64
"""The most scans of a JPEG. Encoders write 1 (baseline) to about 12 (progressive)."""

JPEG, ICON, PNG = b"\xff\xd8\xff", b"\0\0\1\0", b"\x89PNG\r\n\x1a\n"
SCAN, END, START = 0xDA, 0xD9, 0xD8
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
"""A JPEG marker, except those that may stand inside a scan."""


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError where an image has too many pixels or too long a side."""
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels are more than {max_pixels:,}")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{width}x{height} pixels: a side is longer than {MAX_SIDE:,}")


def check_header(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Raise ValueError for an icon whose pictures are too large or a JPEG with too many scans."""
    if data.startswith(ICON):
        for width, height in _icon_sizes(data):
            check_size(width, height, max_pixels)
    if data.startswith(JPEG) and has_too_many_scans(data):
        raise ValueError(f"a JPEG of more than {MAX_SCANS} scans; save it again")


def has_too_many_scans(data: bytes) -> bool:
    """Return whether the first picture of a JPEG has more than MAX_SCANS scans (SOS markers)."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return False
    scans, offset = 0, 0  # markers are followed one by one: metadata and trailing bytes may contain SOS bytes, too
    while scans <= MAX_SCANS and (match := MARKER.search(data, offset)):
        offset, marker = match.end(), data[match.end() - 1]
        if marker == END:
            break
        if marker != START:
            scans += marker == SCAN
            offset += max(2, int.from_bytes(data[offset : offset + 2]))
    return scans > MAX_SCANS


def _icon_sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes of the pictures in an icon from their own headers; unreadable headers are left to Pillow."""
    sizes = []
    for entry in range(int.from_bytes(data[4:6], "little")):
        offset_bytes = data[6 + 16 * entry + 12 : 6 + 16 * entry + 16]
        if len(offset_bytes) < 4:
            break
        start = int.from_bytes(offset_bytes, "little")
        header = data[start : start + 24]
        if header.startswith(PNG) and len(header) == 24:
            sizes.append(struct.unpack(">II", header[16:24]))
        elif len(header) == 24:
            is_old = header[:4] == b"\x0c\0\0\0"
            width, height = struct.unpack("<HH", header[4:8]) if is_old else struct.unpack("<ii", header[4:12])
            sizes.append((abs(width), abs(height) // 2))  # the height covers the picture and its mask
    return sizes
