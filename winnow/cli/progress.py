"""What commands say line by line, without rich, which takes a while to load."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from tasks.project.paths import quieten
from winnow.printable import printable_text


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line; control characters in foreign text are shown, not obeyed. `file`: standard output by default."""
    print(printable_text(text), file=file or sys.stdout)


def tell_progress() -> None:
    """What winnow notes while it works, for people; the libraries below it stay quiet."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("winnow").setLevel(logging.INFO)
    quieten()
