"""Timing of calls: start idle, warm up, time each call alone, and interleave several files.

Threads of a runtime may keep computing after a call: ONNX Runtime's spin for a while in case another call follows
(onnxruntime issues 11841 and 17011), and so do OpenMP's. The next file then shares its cores with them and took up to
2.4 times as long. So every visit starts idle: `wait_until_idle` waits until this process uses no processor time. Then
calls run untimed for at least `warm_up_ms`, for caches, clocks and sleeping threads; only later calls are timed, for
at least `timed_ms`: twenty calls of a small network take four milliseconds, and one interruption moves their median.

Files to compare are interleaved, round by round, so that drift affects all of them, in a changing order, so that
none always follows the same one. The medians of one round are paired in time; winnow/evaluation/intervals.py computes
the interval of a speed-up from these pairs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.deploy.runtime_properties import Predict
from winnow.timing_lock import timing_lock

log = logging.getLogger(__name__)

WARM_UP_MS = 100.0
TIMED_MS = 50.0
WARM_UP_CALLS = 1
"""Fewest untimed calls, however long they take."""
SLICE_SECONDS, IDLE_SHARE, PATIENCE_SECONDS = 0.01, 0.05, 2.0
"""Length of a check, share of processor time below which the process is idle, and longest wait."""

SecondsByRound = list[list[float]]
"""Seconds of each timed call, round by round."""


@dataclass(frozen=True)
class TimedFile:
    """A file to time, interleaved with others: its function, the pixels to call it with, and PyTorch's threads."""

    predict: Predict
    pixels_NHWC: NDArray[np.uint8]
    torch_threads: int | None = None
    """Set before each visit; None: unchanged."""


def wait_until_idle() -> bool:
    """Wait until this process is idle. Return False if it is not within PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        time.sleep(SLICE_SECONDS)
        if time.process_time() - cpu_start < IDLE_SHARE * (time.perf_counter() - wall_start):
            return True
    log.warning(
        "threads of this process still compute %g s after the last call; the next timing may be too slow",
        PATIENCE_SECONDS,
    )
    return False


def time_calls(
    call: Callable[[], object], calls: int, warm_up_ms: float = WARM_UP_MS, timed_ms: float = TIMED_MS
) -> list[float]:
    """Return the seconds of each call, from idle and after at least `warm_up_ms` of untimed calls.

    At least `calls` calls are timed, and more until `timed_ms` have passed.
    """
    wait_until_idle()
    warm_up_end, untimed = time.perf_counter() + warm_up_ms / 1e3, 0
    while untimed < WARM_UP_CALLS or time.perf_counter() < warm_up_end:
        call()
        untimed += 1
    seconds: list[float] = []
    timed_end = time.perf_counter() + timed_ms / 1e3
    while len(seconds) < calls or time.perf_counter() < timed_end:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def visiting_order(files: int, round_number: int) -> list[int]:
    """Return every number below `files` once; each round starts at another one, odd rounds run backwards."""
    step = -1 if round_number % 2 else 1
    return [(round_number + step * position) % files for position in range(files)]


def time_in_turns(
    files: Sequence[TimedFile], rounds: int, calls: int, warm_up_ms: float = WARM_UP_MS, timed_ms: float = TIMED_MS
) -> list[SecondsByRound]:
    """Return the seconds of each file's calls, round by round; every file is visited once in each round.

    A visit is a call of `time_calls`. The caller holds `timing_lock`.
    """
    seconds: list[SecondsByRound] = [[] for _ in files]
    for round_number in range(rounds):
        for number in visiting_order(len(files), round_number):
            file = files[number]
            if file.torch_threads is not None:
                set_torch_threads(file.torch_threads)
            call = partial(file.predict, file.pixels_NHWC)
            seconds[number].append(time_calls(call, calls, warm_up_ms, timed_ms))
    return seconds


def medians_ms(seconds_by_round: SecondsByRound) -> list[float]:
    """Return the median time of a call in each round, in ms."""
    return [float(np.median(seconds)) * 1e3 for seconds in seconds_by_round]


def time_pair(
    predict: Predict, reference: Predict, pixels_NHWC: NDArray[np.uint8], calls: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the median time of a call in ms of each round, of `predict` and of `reference`, under `timing_lock`."""
    pair = [TimedFile(predict, pixels_NHWC), TimedFile(reference, pixels_NHWC)]
    with timing_lock():
        own_seconds, reference_seconds = time_in_turns(pair, rounds, calls)
    return medians_ms(own_seconds), medians_ms(reference_seconds)
