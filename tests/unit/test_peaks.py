from __future__ import annotations

import pytest

from winnow import peaks as module
from winnow.machine import has_fast_bf16
from winnow.peaks import _integers, _rate, peaks


def test_every_precision_that_is_there_has_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 256)
    found = peaks()
    assert set(found) == {"f32", "int8"} | ({"bf16"} if has_fast_bf16() else set())
    assert all(1e8 < rate < 1e15 for rate in found.values())


def test_it_is_the_cube_over_the_shortest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 100)
    clock = iter([time for call in range(20) for time in (float(call), call + (0.5 if call == 7 else 0.9))])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert _rate(lambda: calls.append(1)) == pytest.approx(100**3 / 0.5)
    assert len(calls) == 21  # one untimed


def test_integers_are_multiplied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 64)
    (product,) = _integers()()  # type: ignore[misc]
    assert product.dtype.name == "int32"
    assert abs(int(product.max())) > 255
