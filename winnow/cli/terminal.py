"""What the command line prints with: foreign text in a message is text, never markup or a terminal's command."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from winnow.printable import printable_text


class Terminal(Console):
    """Rich's console that takes every string as it is. Styles are given to tables and rows, not within text."""

    def __init__(self, *, stderr: bool = False, width: int | None = None, soft_wrap: bool = True) -> None:
        super().__init__(stderr=stderr, width=width, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a string into what is printed: rich calls it for every one, in tables and titles too."""
        return super().render_str(printable_text(text), **options)
