from __future__ import annotations

from collections.abc import Iterator

import pytest

from winnow.benchmark.cases import plan_cases
from winnow.config import Benchmark
from winnow.deploy.runtime_properties import GPU_RUNTIMES
from winnow.records.benchmark import BenchmarkCase


def case_kinds(cases: list[BenchmarkCase]) -> Iterator[tuple[str, str, str]]:
    return ((case.candidate, case.runtime, case.precision) for case in cases)


@pytest.mark.parametrize("grid", ["quick", "full"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fast_bf16", [False, True])
def test_planned_cases(grid: str, threads: int, fast_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("winnow.benchmark.cases", "winnow.deploy.runtime_properties"):
        monkeypatch.setattr(f"{module}.has_fast_bf16", lambda: fast_bf16)
    settings = Benchmark(grid=grid, large_batch=16)  # type: ignore[arg-type]
    cases = plan_cases({"dense": False, "dense-int8": True, "pruned": False}, settings, threads, cuda=False)
    assert len(cases) == len(set(cases))
    numbers = {1: {1, threads}, 16: {1, threads} if grid == "full" else {threads}}
    assert {(case.batch, case.threads) for case in cases} == {(b, t) for b, counts in numbers.items() for t in counts}
    compiled = {(case.batch, case.threads) for case in cases if case.runtime == "compile"}
    assert compiled == {(b, t) for b in numbers for t in ({1, threads} if grid == "full" else {threads})}
    planned = set(case_kinds(cases))
    runtimes = {"ort", "openvino"} | ({"openvino-throughput"} if threads > 1 else set())
    int8 = {("dense-int8", runtime, "int8") for runtime in runtimes}
    float_part = {("dense-int8", runtime, "int8-bf16") for runtime in runtimes - {"ort"}} if fast_bf16 else set()
    assert {kind for kind in planned if kind[0] == "dense-int8"} == int8 | float_part
    assert all(case.batch == 16 and case.threads > 1 for case in cases if case.runtime == "openvino-throughput")
    assert {("dense", "eager", "f32"), ("dense", "compile", "f32"), ("pruned", "openvino", "f32")} <= planned
    assert (("pruned", "eager", "f32") in planned) == (grid == "full")
    assert any(kind[2] == "bf16" for kind in planned) == fast_bf16
    eager = {case.layout for case in cases if case.runtime == "eager"}
    assert eager == {"contiguous", "channels_last"}
    in_float = plan_cases(
        {"dense": False, "ladder": False}, settings, threads, False, {"dense"}
    )  # quantized, and all float
    assert {kind[:2] for kind in case_kinds(in_float) if kind[0] == "ladder"} == {("ladder", name) for name in runtimes}
    gpu_cases = plan_cases({"dense": False, "dense-int8": True}, settings, threads, cuda=True)
    assert {case.threads for case in gpu_cases if case.runtime in GPU_RUNTIMES} == {threads}
    files = {(case.candidate, case.runtime) for case in gpu_cases if case.runtime in ("ort-cuda", "ort-tensorrt")}
    assert files == {("dense", "ort-cuda"), ("dense", "ort-tensorrt")}
    assert not any(case.runtime in GPU_RUNTIMES for case in cases)
