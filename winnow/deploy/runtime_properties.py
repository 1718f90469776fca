"""Properties of the runtimes: groups, precisions, streams, and the agreement that is needed before a runtime is timed.

It imports no runtime. winnow/deploy/inference_runtimes.py describes them and opens a candidate in one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from winnow.hardware import has_fast_bf16
from winnow.records.benchmark import Precision, Runtime

INT8_PRECISIONS: tuple[Precision, ...] = ("int8", "int8-bf16")
"""The precisions of int8 files."""
NEEDED_AGREEMENT: dict[Precision, float] = {
    "f32": 0.99,  # the same arithmetic in another order changes ties only
    "bf16": 0.95,  # 8 bits of mantissa move logits by a hundredth; close calls flip
    "int8-bf16": 0.95,
    "int8": 0.95,  # runtimes round differently, and without VNNI products saturate
}
"""The share of images for which a runtime must predict the reference's class before it is timed."""
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A function from uint8 pixels (N, S, S, 3) to float32 logits (N, C)."""

COMPILED_RUNTIMES = ("compile", "compile-autotune")
PYTORCH_RUNTIMES = ("eager", *COMPILED_RUNTIMES)
OPENVINO_RUNTIMES: tuple[Runtime, ...] = ("openvino", "openvino-throughput")
GPU_RUNTIMES = ("eager-cuda", "ort-cuda", "ort-tensorrt")


class RuntimeUnavailable(Exception):
    """This machine lacks the runtime, for the reason in the message. The benchmark catches and lists it."""


def list_cpu_runtimes(precision: Precision, batch: int, threads: int) -> list[tuple[Runtime, Precision]]:
    """Return the CPU runtimes and precisions for a file in f32 or int8, with bf16 variants where bf16 is fast."""
    in_bf16: Precision = "bf16" if precision == "f32" else "int8-bf16"
    precisions: list[Precision] = [precision, in_bf16] if has_fast_bf16() else [precision]
    modes = openvino_modes(batch, threads)
    return [("ort", precision), *((mode, variant) for variant in precisions for mode in modes)]


def count_streams(runtime: str, batch: int, threads: int) -> int:
    """Return the number of streams that share batch and threads equally; 1 except in OpenVINO's throughput mode."""
    return math.gcd(batch, threads) if runtime == "openvino-throughput" else 1


def openvino_modes(batch: int, threads: int) -> list[Runtime]:
    """Return the latency mode, and the throughput mode where streams can share the batch and the threads."""
    return [mode for mode in OPENVINO_RUNTIMES if mode == "openvino" or count_streams(mode, batch, threads) > 1]
