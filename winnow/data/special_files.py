"""Reject files in data.path that DVC cannot hash. DVC hashes every file there before any step reads it.

DVC blocks on a pipe or device, fails with an unhelpful error on a broken link or an unreadable file, and does not
follow a link to a folder, so that images added there would go unnoticed. `check_special_files` reports them before DVC
runs; it reads names and types of files, no content.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from winnow.data.split_names import parse_split
from winnow.data.system_files import is_skipped_folder
from winnow.errors import DataError
from winnow.printable import printable

MAX_SHOWN = 10
FILE_TYPES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
PERMISSION_HINT = "give your account read permission, or move it away"


def linked_folder_message(path: Path) -> str:
    """Return the message for a link to a folder in place of a class."""
    return (
        f"{printable(str(path))} is a link to a folder: images that are added to it would go unnoticed. Put the "
        "folder itself there (move, copy or mount it), or name each image's class in a table (data.labels) of the "
        "folder that holds them all"
    )


def check_special_files(path: Path, *, has_class_folders: bool) -> None:
    """Raise DataError where `path` is or holds a file that DVC cannot hash, or a link in place of a class folder."""
    if not path.exists():
        return  # opening the source reports it, or it is fetched first
    problems = list(itertools.islice(_find_problems(path, has_class_folders), MAX_SHOWN + 1))
    if problems:
        ellipsis = "\n  ..." if len(problems) > MAX_SHOWN else ""
        raise DataError(
            f"data.path: {printable(str(path))} holds files that cannot be read as images:"
            + "".join(f"\n  {problem}" for problem in problems[:MAX_SHOWN])
            + ellipsis
        )


def _find_problems(path: Path, has_class_folders: bool) -> Iterator[str]:
    if not path.is_dir():
        if problem := _file_problem(path.stat().st_mode, path):
            yield problem
        return
    folders = [str(path)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield f"{printable(folder)}: cannot be read ({error.strerror}); {PERMISSION_HINT}"
            continue
        is_split = Path(folder).parent == path and parse_split(Path(folder).name) is not None
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif problem := _entry_problem(entry, has_class_folders and (folder == str(path) or is_split)):
                yield problem


def _entry_problem(entry: os.DirEntry[str], may_be_class: bool) -> str:
    """Return the problem with a file or link, or ""."""
    path = Path(entry.path)
    try:
        status = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            return f"{printable(entry.path)}: a broken link ({error.strerror}); remove it"
        return f"{printable(entry.path)}: cannot be read ({error.strerror})"
    if stat.S_ISDIR(status.st_mode):
        return linked_folder_message(path) if may_be_class and not is_skipped_folder(entry.name) else ""
    return _file_problem(status.st_mode, path)


def _file_problem(mode: int, path: Path) -> str:
    """Return the problem with a special or unreadable file, or ""."""
    if file_type := FILE_TYPES.get(stat.S_IFMT(mode)):
        return f"{printable(str(path))}: {file_type}, not a file; move it elsewhere or remove it"
    if not os.access(path, os.R_OK):
        return f"{printable(str(path))}: cannot be read; {PERMISSION_HINT}"
    return ""
