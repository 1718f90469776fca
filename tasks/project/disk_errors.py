"""What a full or read-only disk makes libraries raise, as one message: what is wrong, where, and what to do.

Files are written by Python, NumPy, safetensors, ONNX, DVC and SQLite, and each raises something else; some keep the
system's error number, others only its words. Outermost code asks here before it lets a traceback through.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from winnow.errors import WinnowError
from winnow.printable import printable

FULL = re.compile(
    r"No space left on device|database or disk is full|Disk quota exceeded|File too large|requested and \d+ written"
)
READ_ONLY = re.compile(r"Read-only file system|readonly database")
FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM)


LEAST_ROOM = 64_000_000
"""Bytes that a run takes before its first step: databases of Prefect, MLflow and DVC."""


def check_room(root: Path) -> None:
    """Raise WinnowError where not even the servers of a run have room: they would end without saying why."""
    free = shutil.disk_usage(root).free
    if free < LEAST_ROOM:
        raise WinnowError(
            f"the disk of {root} has {free / 1e6:.0f} MB left, and a run takes {LEAST_ROOM / 1e6:.0f} MB before its "
            "first step; make room (`winnow plan` tells what the whole run takes)"
        )


def disk_problem(error: BaseException, root: Path) -> str | None:
    """Return the message for an error that a full, read-only or forbidden place is behind; None for any other.

    `root`: the project's folder. A place that may not be entered counts only where the error names a file.
    """
    for each in _causes(error):
        number = each.errno if isinstance(each, OSError) else None
        named = each.filename if isinstance(each, OSError) else None
        where = printable(str(named)) if named else str(root)
        if _is_full(each):
            return (
                f"the disk is full, or a quota is used up ({where} cannot be written); make room, and give the same "
                "command again: it goes on where it stopped. `winnow plan` tells what a run takes, `dvc gc -w` removes "
                "outputs of former runs from DVC's cache"
            )
        if number == errno.EROFS or READ_ONLY.search(str(each)):
            return f"{where} cannot be written: the disk is mounted read-only; winnow keeps what it makes in {root}"
        if number in FORBIDDEN and named:
            return f"{where}: {errno_text(number)}; see that this account may read it, and write in {root}"
    return None


def is_full(error: BaseException) -> bool:
    """Return whether a full disk, or a quota, is behind an error."""
    return any(_is_full(each) for each in _causes(error))


def _is_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in FULL_NUMBERS) or FULL.search(str(error)) is not None


def errno_text(number: int | None) -> str:
    """Return the words for the numbers of `FORBIDDEN`."""
    return "operation not permitted" if number == errno.EPERM else "permission denied"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what is behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
