"""A limit on how long a call may take, whatever it waits for.

A time limit of an HTTP library is on the wait for the next bytes: a server that sends one byte a second holds its
client for hours.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class TookTooLong(BaseException):
    """Raised in the thread whose time is over.

    No Exception: a library that tries again after any of those would try again.
    """


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TookTooLong here where the block takes longer, as soon as this thread is back in Python's own code.

    A wait for a socket comes back there with every piece of data, and at its own time limit at the latest.
    """
    thread, over, lock = ctypes.c_ulong(threading.get_ident()), False, threading.Lock()

    def strike() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TookTooLong))

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # one that has not arrived yet
        timer.cancel()
