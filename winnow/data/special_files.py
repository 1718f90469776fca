"""What must not lie in data.path, since DVC hashes every file there before any step looks at it.

DVC waits for ever for the content of a pipe or device, ends with an error of its own at a link that leads nowhere or a
file that it may not read, and does not look behind a link to a folder: images that are added there would go unnoticed.
`refuse_special_files` names them before DVC is called; it reads names and kinds of files, no content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from winnow.data.split_names import split_of
from winnow.data.system_files import is_passed_over
from winnow.errors import DataError
from winnow.printable import printable

SHOWN = 10
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MEND_RIGHTS = "give your account the right to, or move it away"


def linked_folder(path: Path) -> str:
    """Return what to say of a link to a folder where a class should be."""
    return (
        f"{printable(str(path))} is a link to a folder: images that are added behind it would go unnoticed. Put the "
        "folder itself there (move, copy or mount it), or name each image's class in a table (data.labels) of the "
        "folder that holds them all"
    )


def refuse_special_files(path: Path, *, has_class_folders: bool) -> None:
    """Raise DataError where `path` is or holds what DVC cannot hash, or has a link in place of a class folder."""
    if not path.exists():
        return  # said elsewhere, or fetched before it is looked at
    found = []
    for problem in _problems(path, has_class_folders):
        found.append(problem)
        if len(found) > SHOWN:
            break
    if found:
        more = "\n  ..." if len(found) > SHOWN else ""
        raise DataError(
            f"data.path: {printable(str(path))} holds what cannot be read as images:"
            + "".join(f"\n  {problem}" for problem in found[:SHOWN])
            + more
        )


def _problems(path: Path, has_class_folders: bool) -> Iterator[str]:
    if not path.is_dir():
        if reason := _reason(path.stat().st_mode, path):
            yield reason
        return
    folders = [str(path)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield f"{printable(folder)}: cannot be read ({error.strerror}); {MEND_RIGHTS}"
            continue
        is_split = Path(folder).parent == path and split_of(Path(folder).name) is not None
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif reason := _entry_reason(entry, has_class_folders and (folder == str(path) or is_split)):
                yield reason


def _entry_reason(entry: os.DirEntry[str], may_be_class: bool) -> str:
    """Return what is wrong with something that is no folder; empty where nothing is."""
    path = Path(entry.path)
    try:
        about = entry.stat()
    except OSError as error:
        if entry.is_symlink():
            return f"{printable(entry.path)}: a link that leads nowhere ({error.strerror}); remove it"
        return f"{printable(entry.path)}: cannot be read ({error.strerror})"
    if stat.S_ISDIR(about.st_mode):
        return linked_folder(path) if may_be_class and not is_passed_over(entry.name) else ""
    return _reason(about.st_mode, path)


def _reason(mode: int, path: Path) -> str:
    if kind := KINDS.get(stat.S_IFMT(mode)):
        return f"{printable(str(path))}: {kind}, no file; move it out of there or remove it"
    if not os.access(path, os.R_OK):
        return f"{printable(str(path))}: cannot be read; {MEND_RIGHTS}"
    return ""
