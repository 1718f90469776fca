"""Format durations for people."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return seconds as text: "1:02:03", "2:03" or "12 s"."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, remainder = divmod(total, 60)
    return f"{minutes}:{remainder:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{remainder:02d}"
