from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.records import benchmark_row
from winnow.benchmark import peak_throughput as module
from winnow.benchmark.peak_throughput import (
    CALLS,
    CHAINED_PRODUCTS,
    SIDE,
    VISITS,
    MatrixProduct,
    _chained_products,
    _in_onnxruntime,
    _in_openvino,
    _in_pytorch,
    _one_operator,
    _rate,
    highest_rates,
    measure_peaks,
    shares_of_peak,
)
from winnow.hardware import cpu_flags, has_fast_bf16, int8_sums_saturate
from winnow.records.benchmark import BestRows, PeakShares, Precision

PRECISIONS = {"f32", "int8"} | ({"bf16"} if has_fast_bf16() else set())


def multiply(operator: str, a: NDArray[Any], b: NDArray[Any], out: type) -> NDArray[Any]:
    results: Any = _one_operator(operator, a, b, out)()
    product: NDArray[Any] = results[0]
    return product


@pytest.mark.thorough
def test_every_supported_precision_has_a_peak() -> None:
    rates = measure_peaks()
    assert set(rates) == PRECISIONS
    assert all(1e8 < rate < 1e15 for rate in rates.values())


def test_the_rate_is_the_cube_of_the_side_over_the_shortest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 100)
    delays = iter([0.06, 0.06, *[0.03] * (CALLS - 1), 0.01])  # 100 ms untimed, then CALLS
    rate = _rate(MatrixProduct("f32", 8, lambda: time.sleep(next(delays))))
    assert 8 * 100**3 / 0.03 < rate <= 8 * 100**3 / 0.01
    assert next(delays, None) is None


def test_products_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
    weights = rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    int8_product = multiply("MatMulInteger", pixels, weights, np.int32)
    expected = pixels[:4].astype(np.int64) @ weights.astype(np.int64)
    if not int8_sums_saturate(cpu_flags()):
        np.testing.assert_array_equal(int8_product[:4], expected)
    assert int8_product.dtype == np.int32
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    product = multiply("MatMul", a, b, np.float32)
    np.testing.assert_allclose(product, a @ b, atol=1e-2)


@pytest.mark.parametrize(("precision", "executed"), [("f32", "f32"), ("bf16", "bf16"), ("int8", "u8")])
def test_openvino_multiplies_in_the_given_precision(precision: str, executed: str) -> None:
    if precision not in PRECISIONS:
        pytest.skip("this processor has no bf16")
    nodes = [
        node.get_rt_info() for node in _chained_products(CHAINED_PRODUCTS, precision).get_runtime_model().get_ops()
    ]  # type: ignore[arg-type]
    layers = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in nodes]
    products = [layer_precision for layer_type, layer_precision in layers if layer_type in ("FullyConnected", "MatMul")]
    assert products == [executed] * CHAINED_PRODUCTS


def test_every_library_multiplies_in_each_precision_it_supports() -> None:
    bf16 = ["bf16"] if has_fast_bf16() else []
    assert [matrix_product.precision for matrix_product in _in_pytorch()] == ["f32", *bf16]
    assert [matrix_product.precision for matrix_product in _in_onnxruntime()] == ["f32", "int8"]
    assert [(matrix_product.precision, matrix_product.products) for matrix_product in _in_openvino()] == [
        ("f32", 1),
        *[(precision, CHAINED_PRODUCTS) for precision in (*bf16, "int8")],
    ]


def test_the_peak_is_the_best_of_all_libraries_and_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    def matrix_product(precision: str) -> MatrixProduct:
        return MatrixProduct(precision, 1, lambda: None)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_in_pytorch", lambda: [matrix_product("f32"), matrix_product("bf16")])
    monkeypatch.setattr(module, "_in_onnxruntime", lambda: [matrix_product("f32"), matrix_product("int8")])
    monkeypatch.setattr(module, "_in_openvino", lambda: [matrix_product("bf16")])
    rates = iter([2.0, 3.0, 3.0, 7.0, 9.0] + [1.0, 8.0, 4.0, 2.0, 5.0] * (VISITS - 1))
    monkeypatch.setattr(module, "_rate", lambda _product: next(rates))
    assert measure_peaks() == {"f32": 4.0, "bf16": 9.0, "int8": 7.0}
    assert next(rates, None) is None


def test_the_peak_share_of_a_file_uses_the_precision_it_runs_in() -> None:
    f32_row = benchmark_row(precision="f32", images_per_s=1e3)
    bf16_row = benchmark_row(precision="bf16", images_per_s=2e4)
    int8_row = benchmark_row(precision="int8", images_per_s=1.0)
    peaks: dict[Precision, float] = {"f32": 1e10, "bf16": 4e10}
    shares = shares_of_peak(BestRows(latency=f32_row, throughput=bf16_row), 1e6, peaks)
    assert shares == PeakShares(latency=0.1, throughput=0.5)
    assert shares_of_peak(BestRows(latency=int8_row, throughput=None), 1e6, peaks) == PeakShares()
    assert PeakShares().model_dump() == {}  # a share that is missing is left out of the record


def test_the_best_rate_is_taken_per_precision() -> None:
    assert highest_rates({"f32": 2.0, "int8": 5.0}, {"f32": 3.0, "int8": 4.0}) == {"f32": 3.0, "int8": 5.0}
