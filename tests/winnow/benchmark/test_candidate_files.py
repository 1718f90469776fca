from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.records import benchmark_row
from winnow.benchmark.candidate_files import CandidateFiles, finalists, footprint_cases
from winnow.benchmark.measurement_error import REPEATED_DENSE
from winnow.config import Benchmark
from winnow.records.benchmark import BenchmarkRow, BestRows

FILES = CandidateFiles(
    folder=Path("candidates"),
    records={},
    int8={"dense": False, "pruned": False, "pruned-int8": True},
    ancestors={"dense": "dense", "pruned": "pruned", "pruned-int8": "pruned"},
    networks={"dense", "pruned"},
    identical=[],
)


def make_row(candidate: str, runtime: Any, p50_ms: float, batch: int = 1) -> BenchmarkRow:
    precision: Any = "int8" if candidate.endswith("int8") else "f32"
    return benchmark_row(candidate, runtime, precision, p50_ms=p50_ms, batch=batch, threads=2)


ROWS = [
    make_row("dense", "ort", 5.0),
    make_row("dense", "openvino", 4.0),
    make_row("dense", "eager", 9.0),
    make_row("dense", "ort", 60.0, batch=64),
    make_row("dense", "openvino", 50.0, batch=64),
    make_row("dense", "eager", 90.0, batch=64),
    make_row("pruned", "openvino", 3.0),
    make_row("pruned-int8", "ort", 1.0),
    make_row("pruned-int8", "openvino", 2.0),
]
BEST = {
    "dense": BestRows(latency=ROWS[1], throughput=ROWS[4]),
    "pruned": BestRows(latency=ROWS[6], throughput=None),
    "pruned-int8": BestRows(latency=ROWS[7], throughput=None),
}


@pytest.mark.parametrize("grid", ["quick", "full"])
def test_footprints_can_be_compared_in_the_fastest_runtime_of_dense(grid: Any) -> None:
    cases = footprint_cases(FILES, Benchmark(grid=grid), BEST)
    runtimes = {name: [case.runtime for case in cases if case.candidate == name] for name in FILES.int8}
    assert all("openvino" in of_file for of_file in runtimes.values())
    assert "ort" in runtimes["pruned-int8"]  # its own fastest
    assert "eager" in runtimes["dense"]
    assert all(case.precision == "int8" for case in cases if case.candidate == "pruned-int8")
    if grid == "quick":
        assert runtimes == {"dense": ["openvino", "eager"], "pruned": ["openvino"], "pruned-int8": ["openvino", "ort"]}


def test_the_fastest_cases_of_dense_are_compared_twice() -> None:
    cases = finalists(ROWS, FILES, 64)
    repeated = [(case.runtime, case.batch) for case in cases if case.candidate == REPEATED_DENSE]
    assert repeated == [("openvino", 64), ("openvino", 1)]
    assert {(case.runtime, case.batch) for case in cases if case.candidate == "dense"} >= set(repeated)
