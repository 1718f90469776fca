"""How long something takes or will take, in words for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """1:02:03, 2:03 or 12 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
