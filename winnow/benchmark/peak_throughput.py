"""What this processor can do at best: multiply-adds a second of large matrix products, in each precision.

A speed-up says how much better than something else; the share of the peak says how much is left. Each precision is
multiplied by every library that has it here: float32 by PyTorch, ONNX Runtime and OpenVINO, bfloat16 by PyTorch and
OpenVINO, unsigned by signed 8-bit integers by ONNX Runtime and OpenVINO; the fastest is the peak, since a file must not
exceed it because it runs in a better library. All threads, matrices of 1024, the best of many calls; OpenVINO takes
float32 in and gives it back, so of bfloat16 and integers it multiplies several in a row. Each is visited several times,
in turns, from rest and warm (winnow/benchmark/timing.py). Taken in the run that measures the files, since clocks and
neighbours differ from run to run. Small networks stay far below it: calls, copies and additions take their time, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.timing import time_calls
from winnow.deploy.runtimes import INT8, Precision, openvino_core, set_torch_threads
from winnow.errors import MissingExtra
from winnow.hardware import cores, has_fast_bf16

SIDE, IN_A_ROW = 1024, 8
VISITS, CALLS = 3, 10


@dataclass(frozen=True)
class Multiplication:
    """One way to multiply matrices (SIDE, SIDE): `products` of them a call."""

    precision: Precision
    products: int
    call: Callable[[], object]


def peaks() -> dict[Precision, float]:
    """Precision -> multiply-adds a second; bf16 only where the processor has it. Raises MissingExtra."""
    before = set_torch_threads(cores())
    try:
        ways = [*_in_pytorch(), *_in_onnxruntime(), *_in_openvino()]
        return best_of(*({way.precision: _rate(way)} for _ in range(VISITS) for way in ways))
    finally:
        set_torch_threads(before)


def best_of(*visits: Mapping[Precision, float]) -> dict[Precision, float]:
    """The highest rate of each precision."""
    found: dict[Precision, float] = {}
    for visit in visits:
        for precision, rate in visit.items():
            found[precision] = max(rate, found.get(precision, 0.0))
    return found


def share_of_peak(images_per_s: float, macs: float, peak: float) -> float:
    """Of a file that does `macs` multiply-adds an image, where the processor does `peak` a second."""
    return images_per_s * macs / peak


def shares_of_peak(
    rows: Mapping[str, Mapping[str, Any] | None], macs: float, peak: Mapping[Precision, float]
) -> dict[str, float]:
    """Of each of a file's rows of the benchmark, by the peak in the row's precision; none where either is missing.

    An int8 file whose rest is bf16 is measured by the peak of int8.
    """
    return {
        kind: share_of_peak(row["images_per_s"], macs, peak[of])
        for kind, row in rows.items()
        if row is not None and (of := _peak_precision(row["precision"])) in peak
    }


def _peak_precision(precision: Precision) -> Precision:
    return "int8" if precision in INT8 else precision


def _rate(way: Multiplication) -> float:
    seconds = time_calls(way.call, CALLS)
    return float(way.products * SIDE**3 / min(seconds))


def _in_pytorch() -> list[Multiplication]:
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    ways = [Multiplication("f32", 1, lambda: a @ b)]
    if has_fast_bf16():
        c, d = a.bfloat16(), b.bfloat16()
        ways.append(Multiplication("bf16", 1, lambda: c @ d))
    return ways


def _in_onnxruntime() -> list[Multiplication]:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((2, SIDE, SIDE), np.float32)
    pixels, weights = rng.integers(0, 256, (SIDE, SIDE), np.uint8), rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    return [
        Multiplication("f32", 1, _one_operator("MatMul", floats[0], floats[1], np.float32)),
        Multiplication("int8", 1, _one_operator("MatMulInteger", pixels, weights, np.int32)),
    ]


def _one_operator(operator: str, a: NDArray[Any], b: NDArray[Any], out: type) -> Callable[[], object]:
    """a (SIDE, SIDE) @ b by one operator of ONNX; `out`: the type of the result's elements."""
    try:
        import onnx
        import onnxruntime
        from onnx import helper
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", "runtimes") from error
    given, result = (helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (a.dtype, out))
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "peak",
        [helper.make_tensor_value_info("a", given, [SIDE, SIDE])],
        [helper.make_tensor_value_info("c", result, [SIDE, SIDE])],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _in_openvino() -> list[Multiplication]:
    precisions: list[Precision] = ["f32", "bf16", "int8"] if has_fast_bf16() else ["f32", "int8"]
    rng = np.random.default_rng(0)
    ways = []
    for precision in precisions:
        if precision == "int8":
            given: NDArray[Any] = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
        else:
            given = rng.standard_normal((SIDE, SIDE), np.float32)
        products = 1 if precision == "f32" else IN_A_ROW
        request = _in_a_row(products, precision).create_infer_request()
        call = partial(request.infer, [given], share_inputs=True)
        ways.append(Multiplication(precision, products, call))
    return ways


def _in_a_row(products: int, precision: Precision) -> Any:
    """A compiled model: products with constant matrices (SIDE, SIDE), each of the last one's result."""
    core = openvino_core()
    import openvino
    from openvino import opset13 as operators

    rng, int8 = np.random.default_rng(1), precision == "int8"
    low, high = np.float32(0), np.float32(255)
    given = at = operators.parameter([SIDE, SIDE], np.uint8 if int8 else np.float32)
    if int8:
        at = operators.convert(at, "f32")
    for _ in range(products):
        if int8:
            at = operators.fake_quantize(at, low, high, low, high, 256)
            weights = operators.constant(rng.integers(-127, 128, (SIDE, SIDE), np.int8))
            weights = operators.multiply(operators.convert(weights, "f32"), np.float32(1e-3))
        else:
            weights = operators.constant(rng.standard_normal((SIDE, SIDE), np.float32) / np.float32(SIDE**0.5))
        at = operators.matmul(at, weights, False, True)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": cores(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    return core.compile_model(openvino.Model([at], [given], "peak"), "CPU", settings)
