"""A time limit for downloads by libraries that set none, so that a stalled connection ends with an error."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

STALL_SECONDS = 30.0
"""The longest time in which a download may receive nothing."""


@contextlib.contextmanager
def stall_limit() -> Iterator[None]:
    """Within the block, a new connection that sends nothing for STALL_SECONDS raises TimeoutError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
