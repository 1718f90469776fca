from __future__ import annotations

import pytest

from winnow.eta import ProgressTimer, format_duration


class Clock:
    """A clock that a test sets."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("winnow.eta.time.monotonic", clock)
    return clock


def test_durations() -> None:
    texts = [format_duration(seconds) for seconds in (0.4, 59, 59.6, 61, 3661)]
    assert texts == ["0 s", "59 s", "1:00", "1:01", "1:01:01"]


def test_a_line_is_due_after_each_interval(clock: Clock) -> None:
    timer = ProgressTimer(10, 4.0)
    due = []
    for clock.seconds in (101.0, 104.0, 105.0, 109.0, 112.9, 113.0):
        due.append(timer.is_due())
    assert due == [False, True, False, True, False, True]


def test_the_time_left_follows_from_the_rate_since_the_start(clock: Clock) -> None:
    timer = ProgressTimer(110, 4.0, done=10)
    clock.seconds = 120.0
    assert (timer.rate(50), timer.left(50)) == (2.0, "30 s")  # 40 in 20 s, 60 are left
    assert (timer.left(110), timer.left(111)) == ("0 s", "0 s")
    assert timer.left(10) == "33:20"  # nothing yet: as if one were done
