"""Files and folders that systems and programs leave among images, told by their names alone.

Hidden ones (a name that begins with a dot), thumbnails and trash of network drives, what Windows, macOS and Linux put
at the top of a drive, and companions of images (Thumbs.db, .txt, .json, .xmp, ...). They are passed over and counted.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

COMPANIONS = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xml", ".yaml", ".yml", ".md", ".html"),
    *(".ini", ".db", ".log", ".xmp", ".aae", ".lnk", ".url"),
)
SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot", "@__thumb"),  # QNAP
        *("$recycle.bin", "recycler", "recycled", "system volume information", "$extend"),  # Windows
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        "lost+found",  # Linux
    )
)
"""In small letters."""
RECOVERED = re.compile(r"found\.\d{3}", re.IGNORECASE)
"""What Windows names the folders in which it puts what it recovered."""


def is_companion(name: str) -> bool:
    """Return whether a file is no image, by its name."""
    return name.startswith(".") or PurePosixPath(name).suffix.lower() in COMPANIONS


def is_passed_over(name: str) -> bool:
    """Return whether a folder is hidden or one that a system or program leaves, by its name."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or bool(RECOVERED.fullmatch(name))
