"""Print lines without rich, which takes a while to load, and show the log of winnow."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from tasks.project.environment import silence_loggers
from winnow.printable import printable_text


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line with control characters escaped. `file`: standard output by default."""
    print(printable_text(text), file=file or sys.stdout)


def show_log() -> None:
    """Show winnow's own log messages; those of other libraries are hidden."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("winnow").setLevel(logging.INFO)
    silence_loggers()
