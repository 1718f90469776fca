"""How calls are timed: from rest, warmed up by time, each call by itself, and several files in turns.

A runtime's threads may keep computing after a call: those of ONNX Runtime spin for a while in the hope of another one
(onnxruntime issues 11841 and 17011), and OpenMP's do, too. What is timed next then shares its cores with them; a file
took up to 2.4 times as long. So every visit begins at rest: `settle` waits until this process uses no more processor
time. Then calls go untimed for at least `warm_up_ms`, for caches, clocks and sleeping threads, and the rest is timed.

Files that are compared are visited in turns, round by round, so that what drifts hits all of them, in an order that
changes, so that none always follows the same one. The medians of one round are pairs in time, of which winnow/intervals
makes the interval of a speed-up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from winnow.deploy.runtimes import Predict, set_torch_threads
from winnow.timing_lock import timing_lock

log = logging.getLogger(__name__)

WARM_UP_MS = 100.0
WARM_UP_CALLS = 1
"""Made in any case, however long one takes."""
SLICE_SECONDS, IDLE_SHARE, PATIENCE_SECONDS = 0.01, 0.05, 2.0

SecondsByRound = list[list[float]]
"""Seconds of each timed call, round by round."""


@dataclass(frozen=True)
class TimedFile:
    """What is timed in turns with others: a function, the pixels it is called with, and PyTorch's threads."""

    predict: Predict
    pixels_NHWC: NDArray[np.uint8]
    torch_threads: int | None = None
    """Set before each visit; None: left alone."""


def settle() -> bool:
    """Wait until no thread of this process computes. Return whether that was so within PATIENCE_SECONDS."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        began, used = time.perf_counter(), time.process_time()
        time.sleep(SLICE_SECONDS)
        if time.process_time() - used < IDLE_SHARE * (time.perf_counter() - began):
            return True
    log.warning(
        "threads of this process still compute %g s after the last call: what is timed now is too slow",
        PATIENCE_SECONDS,
    )
    return False


def time_calls(call: Callable[[], object], calls: int, warm_up_ms: float = WARM_UP_MS) -> list[float]:
    """Return the seconds of each of `calls` calls, after rest and at least `warm_up_ms` of untimed calls."""
    settle()
    until, untimed = time.perf_counter() + warm_up_ms / 1e3, 0
    while untimed < WARM_UP_CALLS or time.perf_counter() < until:
        call()
        untimed += 1
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def visiting_order(files: int, round_: int) -> list[int]:
    """Return every number below `files` once; each round begins elsewhere, odd rounds run backwards."""
    step = -1 if round_ % 2 else 1
    return [(round_ + step * at) % files for at in range(files)]


def time_in_turns(
    files: Sequence[TimedFile], rounds: int, calls: int, warm_up_ms: float = WARM_UP_MS
) -> list[SecondsByRound]:
    """Return the seconds of each file's calls, round by round; every file is visited once in each round.

    The caller holds quiet_machine.
    """
    seconds: list[SecondsByRound] = [[] for _ in files]
    for round_ in range(rounds):
        for at in visiting_order(len(files), round_):
            file = files[at]
            if file.torch_threads is not None:
                set_torch_threads(file.torch_threads)
            seconds[at].append(time_calls(partial(file.predict, file.pixels_NHWC), calls, warm_up_ms))
    return seconds


def medians_ms(seconds_by_round: SecondsByRound) -> list[float]:
    """Return the median call of each round, in ms."""
    return [float(np.median(part)) * 1e3 for part in seconds_by_round]


def time_pair(
    predict: Predict, reference: Predict, pixels_NHWC: NDArray[np.uint8], calls: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the median call in ms of each round, of `predict` and of `reference`, while nobody trains here."""
    pair = [TimedFile(predict, pixels_NHWC), TimedFile(reference, pixels_NHWC)]
    with timing_lock():
        own, its = time_in_turns(pair, rounds, calls)
    return medians_ms(own), medians_ms(its)
