"""Timings never share a machine with training: who times waits until nobody trains, and trainings wait for who times.

    with training_turn():      # each step of a training, in winnow/training.py
        ...
    with quiet_machine():      # around whatever is timed
        ...

Two locks on files in the machine's folder for temporary files, so that processes of any project know of each other.
Trainings share one; who times holds it alone. A gate before it keeps trainings, which take their turn again and again,
from starving who waits to time. The system opens both when a process ends, however it does.

It keeps apart what goes through winnow; a browser or a compiler beside it spoils a timing all the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "WINNOW_LOCKS"
"""Variable that names another folder for the locks."""
SAY_AFTER = 5.0


@contextmanager
def training_turn() -> Iterator[None]:
    """One step of a training; waits while somebody times or is about to."""
    with _held("gate", fcntl.LOCK_SH):
        pass
    with _held("machine", fcntl.LOCK_SH):
        yield


@contextmanager
def quiet_machine() -> Iterator[None]:
    """No step of a training runs on this machine within. Not to be nested, nor used within a turn."""
    with _held("gate", fcntl.LOCK_EX), _held("machine", fcntl.LOCK_EX):
        yield


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
        log.info("waited %.0f s for another process that trains or times here", time.monotonic() - began)
