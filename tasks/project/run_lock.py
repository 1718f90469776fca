"""File locks of a project, so that one run at a time works in a checkout.

A checkout has one dvc.lock, and a benchmark beside another run measures nothing useful. A run holds .winnow/run.lock
exclusively. A step of a `dvc repro` started by hand shares the lock with other such steps, which DVC keeps apart, and
records its `dvc` process, so that no run starts between two of its steps. Promotions hold .winnow/state.lock. The
system releases the lock of a process that ends in any way.
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
from winnow.records import write_text

WAIT_SECONDS = 1.0
_held: set[Path] = set()
"""Roots of the projects whose run lock this process holds."""


class ProjectLocked(WinnowError):
    """Raised where another run works in this checkout."""


@contextlib.contextmanager
def lock_run(paths: ProjectPaths, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the run lock.

    Where another process holds it, raise ProjectLocked, or call `wait` once with a message and wait.

    Nested calls of the same process do nothing.
    """
    if paths.root in _held:
        yield
        return
    with _opened(paths) as lock:
        is_reported = False
        while not _take_alone(paths, lock):
            if wait is None:
                raise _occupied(paths)
            if not is_reported:
                wait(f"{_message(paths)}; this run waits for it to end")
            is_reported = True
            time.sleep(WAIT_SECONDS)
        _write(paths, process_identity(os.getpid()))
        _held.add(paths.root)
        try:
            yield
        finally:
            _held.discard(paths.root)
            _file_of(paths).unlink(missing_ok=True)


def check_unlocked(paths: ProjectPaths) -> None:
    """Raise ProjectLocked while another run works in this checkout: then even `dvc status` fails."""
    with lock_run(paths):
        pass


def describe_current_run(paths: ProjectPaths) -> str:
    """Return a message with the run that works in this checkout, and its step; "" where there is none."""
    try:
        check_unlocked(paths)
    except ProjectLocked:
        step = _read(paths.state_dir / "run.step")
        return _message(paths) + (f", at step {step[1]}" if step and step[1] else "")
    return ""


def record_step(paths: ProjectPaths, step: str) -> None:
    """Record the current step of the run that holds the lock; "" between two steps."""
    with contextlib.suppress(OSError):  # only shown to users
        (paths.state_dir / "run.step").write_text(f"{process_identity(os.getpid())} {step}", encoding="utf-8")


@contextlib.contextmanager
def lock_step(paths: ProjectPaths) -> Iterator[None]:
    """Share the run lock with other steps of a `dvc repro` started by hand; raises ProjectLocked while a run works."""
    with _opened(paths) as lock:
        if not _take(lock, fcntl.LOCK_SH):
            raise _occupied(paths)
        _write(paths, _driver())
        yield


def lock_registry(paths: ProjectPaths) -> contextlib.AbstractContextManager[None]:
    """Wait for the lock on the registry and its local state, and hold it.

    A promotion, a rollback and an approval hold it for some seconds; unlike the run lock it is free during training.
    """
    return _exclusive(paths.state_dir / "state.lock")


def lock_tracking(paths: ProjectPaths) -> contextlib.AbstractContextManager[None]:
    """Wait for the lock on tracked.json, and hold it while the file is read and written."""
    return _exclusive(paths.state_dir / "tracked.lock")


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(paths: ProjectPaths) -> IO[str]:
    paths.state_dir.mkdir(parents=True, exist_ok=True)
    return (paths.state_dir / "run.lock").open("a+", encoding="utf-8")


def _take(lock: IO[str], operation: int) -> bool:
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_alone(paths: ProjectPaths, lock: IO[str]) -> bool:
    """Take the lock exclusively, unless a `dvc repro` started by hand is between two of its steps."""
    if not _take(lock, fcntl.LOCK_EX):
        return False
    if (holder := _read(_file_of(paths))) and holder[0] != process_identity(os.getpid()):
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False
    return True


def _driver() -> str:
    """Return the identity of the outermost `dvc` process above this step, or of the step itself."""
    dvc_processes = [
        process
        for process in psutil.Process().parents()
        if "dvc" in {Path(part).name for part in process.cmdline()[:3]}
    ]
    return process_identity(dvc_processes[-1].pid if dvc_processes else os.getpid())


def _file_of(paths: ProjectPaths) -> Path:
    """Return the path of the file with the last holder of the run lock."""
    return paths.state_dir / "run.holder"


def _write(paths: ProjectPaths, process: str) -> None:
    write_text(_file_of(paths), f"{process} {datetime.now().astimezone():%Y-%m-%d %H:%M}")


def _read(path: Path) -> tuple[str, str] | None:
    """Return (process, text) in a file that a process has written about itself, if it still runs."""
    try:
        process, _, text = path.read_text(encoding="utf-8").partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    return (process, text) if is_alive(process) else None


def _occupied(paths: ProjectPaths) -> ProjectLocked:
    return ProjectLocked(f"{_message(paths)}; wait for it to end, or stop it")


def _message(paths: ProjectPaths) -> str:
    holder = _read(_file_of(paths))
    details = f" (process {holder[0].partition('@')[0]}, since {holder[1]})" if holder else ""
    return f"another run works in {paths.root}{details}"
