"""Encoded image files that several tests of the data need."""

from __future__ import annotations

import struct
import zlib


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of an RGB PNG of this size, without pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 10) + b"IDAT"
