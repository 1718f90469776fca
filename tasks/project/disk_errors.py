"""One message for the errors that libraries raise on a full or read-only disk, and for paths that cannot be.

Python, NumPy, safetensors, ONNX, DVC and SQLite each raise another exception; some keep the system's error number,
others only its text. The command line checks an unexpected error here before it shows a traceback.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from winnow.errors import WinnowError
from winnow.printable import printable

DISK_FULL_TEXT = re.compile(
    r"No space left on device|database or disk is full|Disk quota exceeded|File too large|requested and \d+ written"
)
READ_ONLY_TEXT = re.compile(r"Read-only file system|readonly database")
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PERMISSION_ERRNOS = (errno.EACCES, errno.EPERM)
PATH_ERRNOS = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of a path that someone has given: below a file, a folder in place of a file, too long, links in a circle."""


MIN_FREE_BYTES = 64_000_000
"""Bytes that a run needs before its first step: databases of Prefect, MLflow and DVC."""


def check_free_space(root: Path) -> None:
    """Raise WinnowError where the disk has no space for the servers of a run, which would fail without a reason."""
    free = shutil.disk_usage(root).free
    if free < MIN_FREE_BYTES:
        raise WinnowError(
            f"the disk of {root} has {free / 1e6:.0f} MB left, and a run needs {MIN_FREE_BYTES / 1e6:.0f} MB "
            "before its first step; free space (`winnow plan` shows what the whole run needs)"
        )


def describe_disk_error(error: BaseException, root: Path) -> str | None:
    """Return the message for an error caused by a full disk, a read-only disk or missing permissions; else None.

    `root`: the project's folder. Missing permissions count only where the error names a file.
    """
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        filename = cause.filename if isinstance(cause, OSError) else None
        path = printable(str(filename)) if filename else str(root)
        if _is_full(cause):
            return (
                f"the disk is full, or a quota is used up ({path} cannot be written); free space, and run the same "
                "command again: it resumes where it stopped. `winnow plan` shows what a run needs, `dvc gc -w` removes "
                "outputs of former runs from DVC's cache"
            )
        if number == errno.EROFS or READ_ONLY_TEXT.search(str(cause)):
            return f"{path} cannot be written: the disk is mounted read-only; winnow writes to {root}"
        if number in PERMISSION_ERRNOS and filename:
            reason = "operation not permitted" if number == errno.EPERM else "permission denied"
            return f"{path}: {reason}; check that this account can read it, and write to {root}"
    return None


def describe_path_error(error: BaseException) -> str | None:
    """Return the message for a path that cannot be; None for other errors. For commands: users give them paths."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in PATH_ERRNOS and cause.filename:
            path = printable(str(cause.filename))
            return f"{path} cannot be read or written ({os.strerror(cause.errno)}); choose another path"
    return None


def is_disk_full(error: BaseException) -> bool:
    """Return whether a full disk, or a used-up quota, caused an error."""
    return any(_is_full(cause) for cause in _causes(error))


def _is_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS) or DISK_FULL_TEXT.search(
        str(error)
    ) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its chain of causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
