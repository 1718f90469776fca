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
        self.until = 0.0

    def __call__(self, _pixels: np.ndarray) -> np.ndarray:
        self.until = time.monotonic() + self.seconds
        threading.Thread(target=self._spin, daemon=True).start()
        return np.zeros((1, 2), np.float32)

    def _spin(self) -> None:
        while time.monotonic() < self.until:
            pass


def test_a_visit_begins_when_the_threads_of_the_call_before_rest() -> None:
    spinner = Spinner(0.3)
    spinner(PIXELS)
    starts: list[float] = []
    time_calls(lambda: starts.append(time.monotonic()), calls=1, warm_up_ms=0)
    assert starts[0] >= spinner.until


def test_rest_is_found_at_once_and_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    assert wait_until_idle()
    assert time.monotonic() - started < 0.5
    monkeypatch.setattr("winnow.benchmark.timing.PATIENCE_SECONDS", 0.2)
    Spinner(1.0)(PIXELS)
    started = time.monotonic()
    assert not wait_until_idle()
    assert time.monotonic() - started < 0.9


def test_time_is_that_of_the_calls_without_the_warm_up() -> None:
    waits = iter([0.05, 0.05, 0.002, 0.004, 0.006])
    seconds = time_calls(lambda: time.sleep(next(waits)), calls=3, warm_up_ms=80)
    assert len(seconds) == 3
    assert seconds[0] >= 0.002
    assert seconds[2] >= 0.006
    assert next(waits, None) is None


def test_a_slow_call_is_warmed_up_once() -> None:
    calls = 0

    def slow() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.03)

    assert len(time_calls(slow, calls=2, warm_up_ms=10)) == 2
    assert calls == 3


def test_neither_of_a_pair_is_always_first() -> None:
    calls: list[str] = []

    def answer(name: str, _pixels: np.ndarray) -> np.ndarray:
        calls.append(name)
        return np.zeros((1, 2), np.float32)

    files = [TimedFile(partial(answer, name), PIXELS) for name in "ab"]
    seconds = time_in_turns(files, rounds=4, calls=2, warm_up_ms=0)
    assert "".join(calls[::3]) == "abbaabba"  # one call to warm up and two timed ones a visit
    assert [[len(part) for part in of] for of in seconds] == [[2] * 4] * 2
    assert len(medians_ms(seconds[0])) == 4


def test_a_pair_is_timed_round_by_round() -> None:
    own, reference = time_pair(
        # So far apart that neighbours on a busy machine do not turn them round.
        lambda _: time.sleep(0.1) or np.zeros((1, 2), np.float32),  # type: ignore[func-returns-value]
        lambda _: time.sleep(0.002) or np.zeros((1, 2), np.float32),  # type: ignore[func-returns-value]
        PIXELS,
        calls=2,
        rounds=3,
    )
    assert len(own) == len(reference) == 3
    assert all(a > b for a, b in zip(own, reference, strict=True))
