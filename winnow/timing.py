"""How one call is timed: warmed up apart, each call by itself."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

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
