"""How far the work of a command is, line by line on its standard output."""

from __future__ import annotations

import logging
import sys

from tasks.settings import quieten


def tell_progress() -> None:
    """What winnow notes while it works, for people; the libraries below it stay quiet."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("winnow").setLevel(logging.INFO)
    quieten()
