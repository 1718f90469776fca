from __future__ import annotations

import numpy as np
import pytest

from winnow import peaks as module
from winnow.machine import cpu_flags, has_fast_bf16, saturates
from winnow.peaks import CALLS, SIDE, VISITS, _in_onnxruntime, _rate, peaks


def test_every_precision_that_is_there_has_a_peak() -> None:
    found = peaks()
    assert set(found) == {"f32", "int8"} | ({"bf16"} if has_fast_bf16() else set())
    assert all(1e8 < rate < 1e15 for rate in found.values())


def test_it_is_the_cube_over_the_shortest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 100)
    clock = iter([time for call in range(CALLS) for time in (float(call), call + (0.5 if call == 7 else 0.9))])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert _rate(lambda: calls.append(1)) == pytest.approx(100**3 / 0.5)
    assert len(calls) == CALLS + 1  # one untimed


def test_products_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
    weights = rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    (whole,) = _in_onnxruntime("MatMulInteger", pixels, weights, np.int32)()  # type: ignore[misc]
    expected = pixels[:4].astype(np.int64) @ weights.astype(np.int64)
    if not saturates(cpu_flags()):
        np.testing.assert_array_equal(whole[:4], expected)
    assert whole.dtype == np.int32
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    (product,) = _in_onnxruntime("MatMul", a, b, np.float32)()  # type: ignore[misc]
    np.testing.assert_allclose(product, a @ b, atol=1e-2)


def test_the_faster_library_is_the_peak_of_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    others = 2 if has_fast_bf16() else 1
    rates = iter([2.0, 3.0, *[5.0] * others] + [1.0, 4.0, *[2.0] * others] * (VISITS - 1))
    monkeypatch.setattr(module, "_rate", lambda _multiply: next(rates))
    found = peaks()
    assert (found["f32"], found["int8"]) == (4.0, 5.0)  # the best of all visits
    assert next(rates, None) is None
