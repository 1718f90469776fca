"""Durations for people, and the time that is left of some work."""

from __future__ import annotations

import time

RESUMING = "resuming from step"
"""How the line begins by which a training says that it resumes from a checkpoint."""


def format_duration(seconds: float) -> str:
    """Return seconds as text: "1:02:03", "2:03" or "12 s"."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, remainder = divmod(total, 60)
    return f"{minutes}:{remainder:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{remainder:02d}"


class ProgressTimer:
    """Tells when the next line of progress is due, and estimates the time left by the rate since the start.

    `total` pieces of work, of which `done` were done before; `seconds_between_lines` pass before each line.
    """

    def __init__(self, total: int, seconds_between_lines: float, done: int = 0) -> None:
        self._total, self._seconds_between_lines, self._first = total, seconds_between_lines, done
        self._started = self._last_line = time.monotonic()

    def is_due(self) -> bool:
        """Return whether a line is due; if so, the wait for the next one begins."""
        now = time.monotonic()
        if now - self._last_line < self._seconds_between_lines:
            return False
        self._last_line = now
        return True

    def rate(self, done: int) -> float:
        """Return the pieces per second since the start, when `done` of them are done."""
        return max(done - self._first, 1) / max(time.monotonic() - self._started, 1e-9)

    def left(self, done: int) -> str:
        """Return the time left as text, when `done` pieces are done."""
        return format_duration(max(0, self._total - done) / self.rate(done))
