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


EARLY = """
import os, signal, sys

class InterruptAtImport:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.{sent})

sys.meta_path.insert(0, InterruptAtImport())
sys.argv = ["winnow", "--help"]
from winnow.cli.entry import main
main()
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["click", "winnow.cli.search_commands", "tasks.project.paths"])
def test_ctrl_c_during_the_first_imports_ends_without_a_traceback(module: str, sent: str) -> None:
    code = EARLY.format(module=module, sent=sent)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
