"""The console of the command line, which prints foreign text as text, never as markup or terminal commands."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from winnow.printable import printable_text


class Terminal(Console):
    """Rich's console without markup: styles are given to tables and rows, not within text."""

    def __init__(self, *, stderr: bool = False, width: int | None = None, soft_wrap: bool = True) -> None:
        super().__init__(stderr=stderr, width=width, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as rich Text with control characters escaped; rich calls this for every string."""
        return super().render_str(printable_text(text), **options)
