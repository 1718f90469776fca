"""A limit on the total time of a call.

The timeout of an HTTP library limits the wait for the next bytes: a server that sends one byte per second can hold its
client for hours.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class CallTimeout(BaseException):
    """Raised in the thread whose time limit has passed.

    Not an Exception, because libraries that retry after any Exception would retry.
    """


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise CallTimeout in the block once it has taken `seconds`, as soon as the thread executes Python code again.

    A wait for a socket returns to Python code with every piece of data, and at its own timeout at the latest.
    """
    thread, has_ended, lock = ctypes.c_ulong(threading.get_ident()), False, threading.Lock()

    def interrupt() -> None:
        with lock:
            if not has_ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(CallTimeout))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            has_ended = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # cancels an exception that is still pending
        timer.cancel()
