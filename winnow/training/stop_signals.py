"""Ctrl-C and SIGTERM during a training step: they wait until the step is over.

A step changes weights and momentum one after the other; an interruption between the two would leave a state that no
checkpoint may hold. So the loop defers the signals, writes a checkpoint, and then sends the signal again.

    with deferred_stop() as stop:
        ... one step ...
    if stop.signal is not None:
        ... write a checkpoint ...
        stop.raise_again()
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class DeferredSignal:
    """The signal that arrived during a step; None without one."""

    signal: int | None = None

    def raise_again(self) -> None:
        """Send the signal again, to the handler outside the step."""
        assert self.signal is not None
        os.kill(os.getpid(), self.signal)


@contextlib.contextmanager
def deferred_signals() -> Iterator[DeferredSignal]:
    """Defer SIGINT and SIGTERM within; yields the signal that arrived.

    Python delivers signals to the main thread only; in other threads nothing is deferred.
    """
    stop = DeferredSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def remember(number: int, _frame: FrameType | None) -> None:
        stop.signal = number

    handlers = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
