"""Find processes of this machine by a variable in their environment, and end them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

import psutil

END_SECONDS = 30
"""Seconds that a process has to end after a signal."""


def find_marked(variable: str, mark: str) -> list[int]:
    """Return the ids of other processes whose environment variable starts with `mark`, which children inherit.

    Raises ValueError for an empty mark, which would match every process.
    """
    if not mark:
        raise ValueError(f"an empty mark in {variable}")
    pids = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable, "").startswith(mark):
                pids.append(process.pid)
    return pids


def end_processes(pids: Sequence[int], first_signal: signal.Signals | None = None) -> None:
    """End processes and their descendants: SIGTERM first, then SIGKILL after END_SECONDS.

    `first_signal`: a signal for the processes themselves in place of SIGTERM; they have to end their own descendants.
    """
    members = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            members += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in members:
        if first_signal is None or member.pid in pids:
            _send(member, first_signal or signal.SIGTERM)
    for member in _wait(members):
        _send(member, signal.SIGKILL)
    _wait(members)


def _wait(members: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Wait up to END_SECONDS and return the processes that still run. A zombie counts as ended."""
    deadline = time.monotonic() + END_SECONDS
    while (alive := [member for member in members if _runs(member)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
