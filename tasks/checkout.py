"""One run at a time works in a checkout: it has one dvc.lock, and what is timed beside another run is worth nothing.

A run holds .winnow/run.lock; so does a step that `dvc repro` started by hand, which shares it with other such steps
(DVC keeps those apart). The system lets go of the lock when its holder ends, however it ends. Nothing heavy in here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from tasks.settings import Places
from winnow.errors import WinnowError

WAIT_SECONDS = 1.0


class Occupied(WinnowError):
    """Another run works in this checkout."""


@contextlib.contextmanager
def run_alone(places: Places, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the checkout. While another one does: raise Occupied, or tell `wait` once who it is and wait for its end."""
    with _opened(places) as lock:
        told = False
        while not _take(lock, fcntl.LOCK_EX):
            message = _message(places)
            if wait is None:
                raise Occupied(f"{message}; wait for its end, or stop it")
            if not told:
                wait(f"{message}; this run waits for its end")
            told = True
            time.sleep(WAIT_SECONDS)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, since {datetime.now().astimezone():%Y-%m-%d %H:%M}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def check_free(places: Places) -> None:
    """Raise Occupied while another one works: nobody can even ask DVC what is stale then."""
    with run_alone(places):
        pass


@contextlib.contextmanager
def step_alone(places: Places) -> Iterator[None]:
    """Keep runs away while a step works that nobody but DVC started; raises Occupied while a run works."""
    with _opened(places) as lock:
        if not _take(lock, fcntl.LOCK_SH):
            raise Occupied(f"{_message(places)}; wait for its end, or stop it")
        yield


def _opened(places: Places) -> IO[str]:
    places.hidden.mkdir(parents=True, exist_ok=True)
    return _path(places).open("a+", encoding="utf-8")


def _path(places: Places) -> Path:
    return places.hidden / "run.lock"


def _take(lock: IO[str], how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _message(places: Places) -> str:
    holder = _path(places).read_text(encoding="utf-8") or "a step of dvc repro"
    return f"another run works in {places.root} ({holder})"
