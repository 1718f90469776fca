"""Start `winnow`: Ctrl-C ends it without a traceback from its first moment, before the command line is imported."""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPED = 130


def main() -> None:
    """Run the command line and exit with its status."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _end)
    from winnow.cli.main import main as run

    run()


def _end(_signal: int, _frame: FrameType | None) -> None:
    """End the process; nothing has been begun yet."""
    os._exit(STOPPED)
