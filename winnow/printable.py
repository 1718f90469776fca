"""Escape foreign text (file names, class names, reasons that people type) so that it is harmless and legible.

Each function leaves plain text as it is.
"""

from __future__ import annotations

import re
import unicodedata

BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of the text after them: they make one name look like another."""
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#|!~$])")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(name: str) -> str:
    """Return a name on one line, with undecodable bytes, control characters and direction marks as escapes."""
    return "".join(_escape(character) if _is_control(character) else character for character in _decodable(name))


def printable_text(text: str) -> str:
    """Return text for a terminal: as `printable`, but line breaks and tabs stay."""
    return "".join(
        _escape(character) if character not in "\n\t" and _is_control(character) else character
        for character in _decodable(text)
    )


def markdown(text: str) -> str:
    """Return text escaped for Markdown, so that it makes no links, tags, emphasis or tables."""
    return MARKDOWN.sub(r"\\\1", printable(text.replace("\n", " ")))


def spreadsheet_cell(text: str) -> str:
    """Return text that no spreadsheet takes for a formula: an apostrophe goes before one that starts like a formula."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _decodable(text: str) -> str:
    """Return the text with bytes that are not valid UTF-8, which file names may hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_control(character: str) -> bool:
    return character in BIDI_CONTROLS or unicodedata.category(character) in ("Cc", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
