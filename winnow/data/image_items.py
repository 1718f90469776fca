"""One image of a source before it is decoded: its name, class, group, and its path or bytes."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 200_000_000

Content = str | bytes | ValueError
"""The path of a file, which the decoder reads; its bytes; or the reason why it has none."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source."""

    name: str
    """The path inside the source, with /."""
    label: int
    """The position of its class; -1 for no label."""
    is_test: bool
    """True where the source puts the image into its test set."""
    content: Content
    group: str = ""
    """The name of the group that shares a split; "" for none."""


def read_file(path: str) -> bytes:
    """Return the bytes of an image file. Raises ValueError where it is not a regular file, too large or unreadable."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{status.st_size:,} bytes are more than {MAX_FILE_BYTES:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
