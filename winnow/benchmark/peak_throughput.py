"""Peak throughput of this processor: multiply-adds per second of large matrix products, in each precision.

A speed-up compares with another file; the share of the peak shows how much is left. Each precision is measured in every
library that supports it: float32 in PyTorch, ONNX Runtime and OpenVINO, bfloat16 in PyTorch and OpenVINO, unsigned by
signed 8-bit integers in ONNX Runtime and OpenVINO. The fastest is the peak, so that no file exceeds it by running in a
better library. Matrices of 1024, all threads, the best of many calls. OpenVINO takes and returns float32, so for
bfloat16 and integers it chains several products. Each product is visited several times, interleaved, idle and warmed up
(winnow/benchmark/timing.py). Peaks are measured in the same run as the files, since clocks and load differ from run to
run. Small networks stay far below the peak: calls, copies and additions take time too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.timing import time_calls
from winnow.deploy.openvino_inference import openvino_core
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.deploy.runtime_properties import INT8_PRECISIONS
from winnow.errors import MissingExtra
from winnow.hardware import cores, has_fast_bf16
from winnow.records.benchmark import BestRows, PeakShares, Precision

SIDE, CHAINED_PRODUCTS = 1024, 8
"""Side of the matrices, and products that OpenVINO chains in one call."""
VISITS, CALLS = 2, 10
"""Visits of each product, and timed calls per visit."""


@dataclass(frozen=True)
class MatrixProduct:
    """A way to multiply matrices (SIDE, SIDE); each call computes `products` of them."""

    precision: Precision
    products: int
    call: Callable[[], object]


def measure_peaks() -> dict[Precision, float]:
    """Return precision -> multiply-adds per second; bf16 only with hardware support. Raises MissingExtra."""
    previous_threads = set_torch_threads(cores())
    try:
        multiplications = [*_in_pytorch(), *_in_onnxruntime(), *_in_openvino()]
        visits = [{item.precision: _rate(item)} for _ in range(VISITS) for item in multiplications]
        return highest_rates(*visits)
    finally:
        set_torch_threads(previous_threads)


def highest_rates(*visits: Mapping[Precision, float]) -> dict[Precision, float]:
    """Return the highest rate of each precision."""
    highest: dict[Precision, float] = {}
    for visit in visits:
        for precision, rate in visit.items():
            highest[precision] = max(rate, highest.get(precision, 0.0))
    return highest


def share_of_peak(images_per_s: float, macs: float, peak: float) -> float:
    """Return the share of `peak` (multiply-adds per second) used by a file with `macs` multiply-adds per image."""
    return images_per_s * macs / peak


def shares_of_peak(rows: BestRows, macs: float, peak: Mapping[Precision, float]) -> PeakShares:
    """Return the share of the peak in each row's precision; None for a row or a peak that is missing.

    For an int8 file with a bf16 remainder the peak of int8 is used.
    """
    shares: dict[str, float | None] = {}
    for metric, row in rows:
        rate = peak.get(_peak_precision(row.precision)) if row is not None else None
        shares[metric] = None if row is None or rate is None else share_of_peak(row.images_per_s, macs, rate)
    return PeakShares(**shares)


def _peak_precision(precision: Precision) -> Precision:
    return "int8" if precision in INT8_PRECISIONS else precision


def _rate(multiplication: MatrixProduct) -> float:
    """Return the multiply-adds per second of the fastest call."""
    seconds = time_calls(multiplication.call, CALLS, timed_ms=0.0)
    return float(multiplication.products * SIDE**3 / min(seconds))


def _in_pytorch() -> list[MatrixProduct]:
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    multiplications = [MatrixProduct("f32", 1, lambda: a @ b)]
    if has_fast_bf16():
        c, d = a.bfloat16(), b.bfloat16()
        multiplications.append(MatrixProduct("bf16", 1, lambda: c @ d))
    return multiplications


def _in_onnxruntime() -> list[MatrixProduct]:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((2, SIDE, SIDE), np.float32)
    pixels, weights = rng.integers(0, 256, (SIDE, SIDE), np.uint8), rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    return [
        MatrixProduct("f32", 1, _one_operator("MatMul", floats[0], floats[1], np.float32)),
        MatrixProduct("int8", 1, _one_operator("MatMulInteger", pixels, weights, np.int32)),
    ]


def _one_operator(operator: str, a: NDArray[Any], b: NDArray[Any], out: type) -> Callable[[], object]:
    """Return a call of one ONNX operator, a (SIDE, SIDE) @ b; `out`: element type of the result."""
    try:
        import onnx
        import onnxruntime
        from onnx import helper
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    input_type, output_type = (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in (a.dtype, out))
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "peak",
        [helper.make_tensor_value_info("a", input_type, [SIDE, SIDE])],
        [helper.make_tensor_value_info("c", output_type, [SIDE, SIDE])],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _in_openvino() -> list[MatrixProduct]:
    precisions: list[Precision] = ["f32", "bf16", "int8"] if has_fast_bf16() else ["f32", "int8"]
    rng = np.random.default_rng(0)
    multiplications = []
    for precision in precisions:
        if precision == "int8":
            matrix: NDArray[Any] = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
        else:
            matrix = rng.standard_normal((SIDE, SIDE), np.float32)
        products = 1 if precision == "f32" else CHAINED_PRODUCTS
        request = _chained_products(products, precision).create_infer_request()
        call = partial(request.infer, [matrix], share_inputs=True)
        multiplications.append(MatrixProduct(precision, products, call))
    return multiplications


def _chained_products(products: int, precision: Precision) -> Any:
    """Return a compiled OpenVINO model that multiplies by `products` constant matrices, one after the other."""
    core = openvino_core()
    import openvino
    from openvino import opset13 as operators

    rng, is_int8 = np.random.default_rng(1), precision == "int8"
    low, high = np.float32(0), np.float32(255)
    parameter = node = operators.parameter([SIDE, SIDE], np.uint8 if is_int8 else np.float32)
    if is_int8:
        node = operators.convert(node, "f32")
    for _ in range(products):
        if is_int8:
            node = operators.fake_quantize(node, low, high, low, high, 256)
            weights = operators.constant(rng.integers(-127, 128, (SIDE, SIDE), np.int8))
            weights = operators.multiply(operators.convert(weights, "f32"), np.float32(1e-3))
        else:
            weights = operators.constant(rng.standard_normal((SIDE, SIDE), np.float32) / np.float32(SIDE**0.5))
        node = operators.matmul(node, weights, False, True)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": cores(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    return core.compile_model(openvino.Model([node], [parameter], "peak"), "CPU", settings)
