"""Processes of this machine: those that carry a mark in their environment, and how to end them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

import psutil

END_SECONDS = 30
"""A process that is asked to end has so long."""


def marked(variable: str, mark: str) -> list[int]:
    """Return the processes whose variable begins with a mark, without this one: a program's and all that came of it.

    Raises ValueError for an empty mark, which every process would carry.
    """
    if not mark:
        raise ValueError(f"an empty mark in {variable}")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable, "").startswith(mark):
                found.append(process.pid)
    return found


def end(numbers: Sequence[int], politely: signal.Signals | None = None) -> None:
    """End these processes and all below them, politely, then not: a server with open connections may take its time.

    `politely` is for the processes themselves; without it all are sent SIGTERM.
    """
    members = []
    for number in numbers:
        with contextlib.suppress(psutil.NoSuchProcess):
            members += [psutil.Process(number), *psutil.Process(number).children(recursive=True)]
    for member in members:
        if politely is None or member.pid in numbers:
            _send(member, politely or signal.SIGTERM)
    for member in _still_there(members):
        _send(member, signal.SIGKILL)
    _still_there(members)


def _still_there(members: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended when the time is over. A zombie has: whoever should ask for its status may be slow."""
    deadline = time.monotonic() + END_SECONDS
    while (left := [member for member in members if _runs(member)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, what: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(what)
