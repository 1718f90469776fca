"""Foreign text (file names, class names, reasons that people give) as something else shows it: harmless, and legible.

Each of these leaves plain text as it is.
"""

from __future__ import annotations

import re
import unicodedata

TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows: they make one name look like another."""
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#|!~$])")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(name: str) -> str:
    """A name on one line: bytes that are no text, control characters and turning ones as escapes."""
    return "".join(_escaped(letter) if _is_control(letter) else letter for letter in _whole(name))


def printable_text(text: str) -> str:
    """Text for a terminal: as `printable`, but lines and tabs stay."""
    return "".join(
        _escaped(letter) if letter not in "\n\t" and _is_control(letter) else letter for letter in _whole(text)
    )


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no links, tags, emphasis or tables come of it."""
    return MARKDOWN.sub(r"\\\1", printable(text.replace("\n", " ")))


def spreadsheet_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: one that begins like one gets an apostrophe in front."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _whole(text: str) -> str:
    """File names may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_control(letter: str) -> bool:
    return letter in TURNING or unicodedata.category(letter) in ("Cc", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
