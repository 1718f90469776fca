"""One run at a time works in a checkout: it has one dvc.lock, and what is timed beside another run is worth nothing.

A run holds .winnow/run.lock; so does a step that `dvc repro` started by hand, which shares it with other such steps
(DVC keeps those apart), and which leaves word of its `dvc`: between two steps of that nobody else begins. What serves
has a lock of its own, .winnow/state.lock. The system lets go of a lock when its holder ends, however it ends.
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

import psutil

from tasks.project.paths import ProjectPaths
from tasks.project.run_origin import is_alive, process_identity
from winnow.errors import WinnowError
from winnow.records import renamed

WAIT_SECONDS = 1.0
_held: set[Path] = set()
"""Checkouts that this process holds."""


class Occupied(WinnowError):
    """Another run works in this checkout."""


@contextlib.contextmanager
def run_alone(places: ProjectPaths, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the checkout. While another one does: raise Occupied, or tell `wait` once who it is and wait for its end.

    Within itself it changes nothing: the process has it already.
    """
    if places.root in _held:
        yield
        return
    with _opened(places) as lock:
        told = False
        while not _take_alone(places, lock):
            if wait is None:
                raise _occupied(places)
            if not told:
                wait(f"{_message(places)}; this run waits for its end")
            told = True
            time.sleep(WAIT_SECONDS)
        _write(places, process_identity(os.getpid()))
        _held.add(places.root)
        try:
            yield
        finally:
            _held.discard(places.root)
            _file_of(places).unlink(missing_ok=True)


def check_free(places: ProjectPaths) -> None:
    """Raise Occupied while another one works: nobody can even ask DVC what is stale then."""
    with run_alone(places):
        pass


def who_works(places: ProjectPaths) -> str:
    """Return who works in this checkout just now, and at which step, for people; "" where nobody does."""
    try:
        check_free(places)
    except Occupied:
        step = _step_of(places)
        return _message(places) + (f", at step {step}" if step else "")
    return ""


def note_step(places: ProjectPaths, step: str) -> None:
    """Leave word of the step that the run which holds the checkout is at; "" between two of them."""
    with contextlib.suppress(OSError):  # it is only for people
        (places.state_dir / "run.step").write_text(f"{process_identity(os.getpid())} {step}", encoding="utf-8")


def _step_of(places: ProjectPaths) -> str:
    """The step of the holder; "" where another run left word of one."""
    try:
        process, _, step = (places.state_dir / "run.step").read_text(encoding="utf-8").partition(" ")
    except (OSError, UnicodeDecodeError):
        return ""
    return step if is_alive(process) else ""


@contextlib.contextmanager
def step_alone(places: ProjectPaths) -> Iterator[None]:
    """Keep runs away while a step works that nobody but DVC started; raises Occupied while a run works."""
    with _opened(places) as lock:
        if not _take(lock, fcntl.LOCK_SH):
            raise _occupied(places)
        _write(places, _driver())
        yield


@contextlib.contextmanager
def state_alone(places: ProjectPaths) -> Iterator[None]:
    """Keep others from changing what serves, and what is remembered of it, for some seconds: they wait.

    A promotion, a rollback and a person's answer hold it; unlike the checkout it is free while a run trains.
    """
    with _waited_for(places.state_dir / "state.lock"):
        yield


@contextlib.contextmanager
def memory_alone(places: ProjectPaths) -> Iterator[None]:
    """Keep others from what is remembered of MLflow's runs while it is read and written."""
    with _waited_for(places.state_dir / "tracked.lock"):
        yield


@contextlib.contextmanager
def _waited_for(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(places: ProjectPaths) -> IO[str]:
    places.state_dir.mkdir(parents=True, exist_ok=True)
    return (places.state_dir / "run.lock").open("a+", encoding="utf-8")


def _take(lock: IO[str], how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_alone(places: ProjectPaths, lock: IO[str]) -> bool:
    """The lock, unless it is free only because a `dvc repro` by hand is between two of its steps."""
    if not _take(lock, fcntl.LOCK_EX):
        return False
    if (holder := _holder(places)) and holder[0] != process_identity(os.getpid()):
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False
    return True


def _driver() -> str:
    """The process that brought this step about: the `dvc` above it, or the step itself."""
    above = [one for one in psutil.Process().parents() if "dvc" in {Path(part).name for part in one.cmdline()[:3]}]
    return process_identity(above[-1].pid if above else os.getpid())


def _file_of(places: ProjectPaths) -> Path:
    """Who took the checkout last, and when."""
    return places.state_dir / "run.holder"


def _write(places: ProjectPaths, process: str) -> None:
    with renamed(_file_of(places)) as temporary:
        temporary.write_text(f"{process} {datetime.now().astimezone():%Y-%m-%d %H:%M}", encoding="utf-8")


def _holder(places: ProjectPaths) -> tuple[str, str] | None:
    """(process, since) of who took the checkout last, if it still runs."""
    try:
        process, _, since = _file_of(places).read_text(encoding="utf-8").partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    return (process, since) if is_alive(process) else None


def _occupied(places: ProjectPaths) -> Occupied:
    return Occupied(f"{_message(places)}; wait for its end, or stop it")


def _message(places: ProjectPaths) -> str:
    holder = _holder(places)
    told = f" (process {holder[0].partition('@')[0]}, since {holder[1]})" if holder else ""
    return f"another run works in {places.root}{told}"
