"""Recognize, by name alone, the files and folders that systems and programs leave among images.

These are hidden names (with a leading dot), thumbnails and trash of network drives, folders that Windows, macOS and
Linux create on a drive, and companions of images (Thumbs.db, .txt, .json, .xmp, ...). They are skipped and counted.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

COMPANION_SUFFIXES = (
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
"""Folder names in lower case."""
RECOVERED_FOLDER = re.compile(r"found\.\d{3}", re.IGNORECASE)
"""A folder that Windows creates for recovered files."""


def is_companion_file(name: str) -> bool:
    """Return whether a file's name marks it as no image."""
    return name.startswith(".") or PurePosixPath(name).suffix.lower() in COMPANION_SUFFIXES


def is_skipped_folder(name: str) -> bool:
    """Return whether a folder's name marks it as hidden or as left by a system or program."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or bool(RECOVERED_FOLDER.fullmatch(name))
