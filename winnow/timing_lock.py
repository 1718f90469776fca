"""Keep timings apart from other work of winnow: a timing waits for work to end, and work waits for a timing.

    with compute_lock():       # each step of a training, a calibration, an export, a pass over the images
        ...
    with timing_lock():        # around whatever is timed
        ...

These are two locks on files in the machine's folder for temporary files, so that processes of any project of one user
share them. Work holds the machine lock shared; a timing holds it alone. A gate in front of it keeps work, which takes
the lock again and again, from starving a waiting timing. The system releases both when a process ends, however it ends.

Only work of winnow is kept apart: a browser or a compiler beside it still disturbs a timing.
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

LOCK_FOLDER_VARIABLE = "WINNOW_LOCKS"
"""Environment variable that names another folder for the locks."""
LOG_WAIT_AFTER_S = 5.0


class _ThreadState(threading.local):
    held = ""
    """"", compute_lock or timing_lock."""


_thread_state = _ThreadState()


@contextmanager
def compute_lock() -> Iterator[None]:
    """Hold the lock for work that would disturb a timing; wait while another process times or is about to.

    Inside another compute_lock, or inside one's own timing_lock, it does nothing. It is also a decorator:
    `@compute_lock()`.
    """
    if _thread_state.held:
        yield
        return
    with _file_lock("gate", fcntl.LOCK_SH):
        pass
    with _file_lock("machine", fcntl.LOCK_SH), _marking("compute_lock"):
        yield


@contextmanager
def timing_lock() -> Iterator[None]:
    """Hold the machine alone: no other process of winnow computes meanwhile.

    Raises RuntimeError inside one's own compute_lock or timing_lock, for whose end it would wait for ever.
    """
    if _thread_state.held:
        raise RuntimeError(f"timing_lock within {_thread_state.held} would wait for itself")
    with _file_lock("gate", fcntl.LOCK_EX), _file_lock("machine", fcntl.LOCK_EX), _marking("timing_lock"):
        yield


@contextmanager
def _marking(held: str) -> Iterator[None]:
    """Mark this thread as the holder of a lock while the block runs."""
    _thread_state.held = held
    try:
        yield
    finally:
        _thread_state.held = ""


@contextmanager
def _file_lock(name: str, operation: int) -> Iterator[None]:
    folder = Path(os.environ.get(LOCK_FOLDER_VARIABLE) or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"winnow-{os.getuid()}-{name}.lock").open("a") as file:
        _acquire(file.fileno(), operation)
        yield  # closing the file releases the lock


def _acquire(file: int, operation: int) -> None:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        started = time.monotonic()
    fcntl.flock(file, operation)
    if time.monotonic() - started > LOG_WAIT_AFTER_S:
        log.info("waited %.0f s for another winnow process on this machine", time.monotonic() - started)
