"""Ask a process that has imported all libraries already to run this step (tasks/stage_server.py).

This file imports nothing heavy: it is the whole of a step's own process then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

STEP_SOCKET_VARIABLE = "WINNOW_STEP_SOCKET"
"""The variable with the name of the socket at which the process waits."""
KILLED = 128 + signal.SIGKILL
MAX_BYTES = 4096


def request_step(name: str, arguments: Sequence[str]) -> int | None:
    """Have the waiting process run the step, and return its exit status; None where no process waits.

    `name`: of an abstract Unix socket. If a signal ended the step, the same signal ends this process. If this process
    ends first, the step ends too.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"\0{name}")
        except OSError:
            return None
        # The step gets these signals as well, as it is in the same group, and its exit status is still to come.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _wait_on)
        connection.send(json.dumps(list(arguments)).encode())
        answer = connection.recv(MAX_BYTES)
    status = int(answer) if answer else KILLED
    if status < 0:
        with contextlib.suppress(OSError):  # no handler can be set for SIGKILL
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _wait_on(_signal: int, _frame: FrameType | None) -> None:
    """Do nothing: the call that the signal interrupts is repeated."""
