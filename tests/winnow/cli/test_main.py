"""Check the signal handlers of the command line in child processes, since they change a process's handlers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.closure import ROOT

CODE = """
import os, signal, time
signal.signal(signal.SIGHUP, signal.{hangup})
from winnow.cli.command_setup import handle_signals
handle_signals()
try:
    os.kill(os.getpid(), signal.{sent})
    time.sleep(0.2)
    print("goes on")
except KeyboardInterrupt:
    print("ends")
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("hangup", "sent", "expected"),
    [
        ("SIG_DFL", "SIGHUP", "ends"),
        ("SIG_IGN", "SIGHUP", "goes on"),  # as nohup sets it
        ("SIG_DFL", "SIGTERM", "ends"),
        ("SIG_DFL", "SIGINT", "ends"),
    ],
)
def test_signals_end_a_command_as_ctrl_c_does_but_nohup_is_obeyed(hangup: str, sent: str, expected: str) -> None:
    code = CODE.format(hangup=hangup, sent=sent)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == expected
