"""Timings share the machine with no other work of winnow: who times waits for who works, and workers for who times.

    with busy_turn():          # each step of a training, a calibration, an export, a pass over the images
        ...
    with quiet_machine():      # around whatever is timed
        ...

Two locks on files in the machine's folder for temporary files, so that processes of
any project of one user know of each other.
Workers share one; who times holds it alone. A gate before it keeps workers, which take their turn again and again, from
starving who waits to time. The system opens both when a process ends, however it does.

It keeps apart what goes through winnow; a browser or a compiler beside it spoils a timing all the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "WINNOW_LOCKS"
"""Variable that names another folder for the locks."""
SAY_AFTER = 5.0


class _Mine(threading.local):
    held = ""
    """busy, quiet."""


_mine = _Mine()


@contextmanager
def compute_lock() -> Iterator[None]:
    """Work that would spoil a timing; waits while somebody else times or is about to.

    Within another turn, or within one's own quiet_machine, it changes nothing. Also a decorator: `@busy_turn()`.
    """
    if _mine.held:
        yield
        return
    with _held("gate", fcntl.LOCK_SH):
        pass
    with _held("machine", fcntl.LOCK_SH), _marked("busy"):
        yield


@contextmanager
def timing_lock() -> Iterator[None]:
    """Nobody else takes a turn on this machine within.

    Raises RuntimeError within one's own turn or quiet_machine, for whose end it would wait for ever.
    """
    if _mine.held:
        raise RuntimeError(f"quiet_machine within {_mine.held} waits for itself")
    with _held("gate", fcntl.LOCK_EX), _held("machine", fcntl.LOCK_EX), _marked("quiet"):
        yield


@contextmanager
def _marked(held: str) -> Iterator[None]:
    """This thread holds that."""
    _mine.held = held
    try:
        yield
    finally:
        _mine.held = ""


@contextmanager
def _held(name: str, how: int) -> Iterator[None]:
    path = Path(os.environ.get(FOLDER) or tempfile.gettempdir()) / f"winnow-{os.getuid()}-{name}.lock"
    with path.open("a") as file:
        _take(file.fileno(), how)
        yield  # closing the file opens the lock


def _take(file: int, how: int) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        began = time.monotonic()
    fcntl.flock(file, how)
    if time.monotonic() - began > SAY_AFTER:
        log.info("waited %.0f s for another process that works or times here", time.monotonic() - began)
