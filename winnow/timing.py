"""How calls are timed: warmed up apart, each call by itself; two in turns, so that what drifts hits both."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from winnow.quiet import quiet_machine
from winnow.runtimes import Predict

WARM_UP_SINGLE, WARM_UP_LARGE = 5, 1


def time_calls(predict: Predict, pixels_NHWC: NDArray[np.uint8], warm_up: int, calls: int) -> list[float]:
    """Seconds of each of `calls` calls, after `warm_up` untimed ones."""
    for _ in range(warm_up):
        predict(pixels_NHWC)
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        predict(pixels_NHWC)
        seconds.append(time.perf_counter() - started)
    return seconds


def timed_in_turns(
    predict: Predict, reference: Predict, pixels_NHWC: NDArray[np.uint8], calls: int, visits: int
) -> tuple[float, float]:
    """p50 in ms of a call of each, visited in turns while nobody trains on this machine."""
    mine: list[float] = []
    its: list[float] = []
    with quiet_machine():
        for _ in range(visits):
            mine += time_calls(predict, pixels_NHWC, WARM_UP_SINGLE, calls)
            its += time_calls(reference, pixels_NHWC, WARM_UP_SINGLE, calls)
    return float(np.median(mine)) * 1e3, float(np.median(its)) * 1e3
