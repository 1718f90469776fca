"""What this processor can do at best: multiply-adds a second of one large matrix product, in each precision.

A speed-up says how much better than something else; the share of the peak says how much is left. PyTorch multiplies
bfloat16, ONNX Runtime unsigned by signed 8-bit integers, and float32 whichever of the two is faster at it (PyTorch's
library is slow on some AMD processors); all threads, matrices of 1024, the best of many calls. Each is visited several
times, in turns: what ran just before may still hold the cores for a moment, and one visit then told half of the truth.
Taken in the run that measures the files, since clocks and neighbours differ from run to run. Small networks stay far
below it: calls, copies and additions take their time, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra
from winnow.machine import cores, has_fast_bf16
from winnow.runtimes import Precision

SIDE = 1024
VISITS, CALLS = 3, 10


def peaks() -> dict[Precision, float]:
    """Precision -> multiply-adds a second; bf16 only where the processor has it."""
    import torch

    a, b = (torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    floats = _in_onnxruntime("MatMul", a.numpy(), b.numpy(), np.float32)
    products: list[tuple[Precision, Callable[[], object]]] = [("f32", lambda: a @ b), ("f32", floats)]
    if has_fast_bf16():
        c, d = a.bfloat16(), b.bfloat16()
        products.append(("bf16", lambda: c @ d))
    rng = np.random.default_rng(0)
    pixels, weights = rng.integers(0, 256, (SIDE, SIDE), np.uint8), rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    products.append(("int8", _in_onnxruntime("MatMulInteger", pixels, weights, np.int32)))
    found: dict[Precision, float] = {}
    for _ in range(VISITS):
        for precision, multiply in products:
            found[precision] = max(_rate(multiply), found.get(precision, 0.0))
    return found


def share_of_peak(images_per_s: float, macs: float, peak: float) -> float:
    """Of a file that does `macs` multiply-adds an image, where the processor does `peak` a second."""
    return images_per_s * macs / peak


def _rate(multiply: Callable[[], object]) -> float:
    multiply()
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started)
    return float(SIDE**3 / min(seconds))


def _in_onnxruntime(operator: str, a: NDArray[Any], b: NDArray[Any], out: type) -> Callable[[], object]:
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
