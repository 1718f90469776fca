from __future__ import annotations

import threading
import time
from functools import partial

import numpy as np
import pytest

from winnow.benchmark.timing import TimedFile, medians_ms, time_calls, time_in_turns, time_pair, wait_until_idle

PIXELS = np.zeros((1, 2, 2, 3), np.uint8)


class Spinner:
    """Threads that compute for a while after each call, as those of ONNX Runtime do."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.busy_until = 0.0

    def __call__(self, _pixels: np.ndarray) -> np.ndarray:
        self.busy_until = time.monotonic() + self.seconds
        threading.Thread(target=self._spin, daemon=True).start()
        return np.zeros((1, 2), np.float32)

    def _spin(self) -> None:
        while time.monotonic() < self.busy_until:
            pass


def test_a_visit_waits_until_threads_of_the_previous_call_are_idle() -> None:
    spinner = Spinner(0.3)
    spinner(PIXELS)
    starts: list[float] = []
    time_calls(lambda: starts.append(time.monotonic()), calls=1, warm_up_ms=0, timed_ms=0)
    assert starts[0] >= spinner.busy_until


def test_waiting_for_idle_threads_is_short_and_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    assert wait_until_idle()
    assert time.monotonic() - started < 0.5
    monkeypatch.setattr("winnow.benchmark.timing.PATIENCE_SECONDS", 0.2)
    Spinner(1.0)(PIXELS)
    started = time.monotonic()
    assert not wait_until_idle()
    assert time.monotonic() - started < 0.9


def test_the_warm_up_is_not_timed() -> None:
    delays = iter([0.05, 0.05, 0.002, 0.004, 0.006])
    seconds = time_calls(lambda: time.sleep(next(delays)), calls=3, warm_up_ms=80, timed_ms=0)
    assert len(seconds) == 3
    assert seconds[0] >= 0.002
    assert seconds[2] >= 0.006
    assert next(delays, None) is None


def test_short_calls_are_timed_for_a_while() -> None:
    started = time.monotonic()
    seconds = time_calls(lambda: time.sleep(0.001), calls=2, warm_up_ms=0, timed_ms=60)
    assert time.monotonic() - started >= 0.06
    assert sum(seconds) >= 0.05
    assert len(seconds) > 2


def test_a_slow_call_is_warmed_up_once() -> None:
    calls = 0

    def slow_call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.03)

    assert len(time_calls(slow_call, calls=2, warm_up_ms=10)) == 2
    assert calls == 3


def test_neither_of_a_pair_is_always_first() -> None:
    calls: list[str] = []

    def record_call(name: str, _pixels: np.ndarray) -> np.ndarray:
        calls.append(name)
        return np.zeros((1, 2), np.float32)

    files = [TimedFile(partial(record_call, name), PIXELS) for name in "ab"]
    seconds = time_in_turns(files, rounds=4, calls=2, warm_up_ms=0, timed_ms=0)
    assert "".join(calls[::3]) == "abbaabba"  # one call to warm up and two timed ones a visit
    assert [[len(round_seconds) for round_seconds in file_seconds] for file_seconds in seconds] == [[2] * 4] * 2
    assert len(medians_ms(seconds[0])) == 4


def test_a_pair_is_timed_round_by_round() -> None:
    slow, fast = time_pair(
        # Times so different that load on the machine does not change their order.
        lambda _: time.sleep(0.1) or np.zeros((1, 2), np.float32),  # type: ignore[func-returns-value]
        lambda _: time.sleep(0.002) or np.zeros((1, 2), np.float32),  # type: ignore[func-returns-value]
        PIXELS,
        calls=2,
        rounds=3,
    )
    assert len(slow) == len(fast) == 3
    assert all(slow_seconds > fast_seconds for slow_seconds, fast_seconds in zip(slow, fast, strict=True))
