from __future__ import annotations

import math
from typing import Any

import pytest

from tests.records import benchmark_row
from winnow.benchmark.measurement_error import largest_errors, measurement_errors
from winnow.benchmark.speedups import (
    attribute_speedup,
    baseline_rows,
    best_row,
    candidate_metrics,
    fastest_row,
    merge_compared,
    ratio_metrics,
    read_ratio,
    shortlist_cases,
    speedup,
    speedups,
)
from winnow.errors import ArtifactError
from winnow.evaluation.intervals import Ratio
from winnow.records.benchmark import BenchmarkRow, Precision, ProcessFootprint, Runtime


def make_row(candidate: str, runtime: Runtime, precision: Precision, p50_ms: float, **fields: Any) -> BenchmarkRow:
    return benchmark_row(candidate, runtime, precision, p50_ms=p50_ms, **{"threads": 2, **fields})


ROWS = [
    make_row("dense", "eager", "f32", 12.0, layout="contiguous"),
    make_row("dense", "eager", "f32", 11.0, layout="channels_last"),
    make_row("dense", "eager", "f32", 10.0, layout="channels_last", threads=1),
    make_row("dense", "compile", "bf16", 6.0),
    make_row("dense", "ort", "f32", 5.0),
    make_row("dense", "openvino", "f32", 4.5, threads=1),
    make_row("dense", "openvino", "bf16", 3.0, p95_ms=3.3),
    make_row("dense", "eager-cuda", "f32", 0.1),
    make_row("pruned", "ort", "f32", 2.5),
    make_row("pruned", "ort", "f32", 2.6, threads=1),
    make_row("pruned", "openvino", "f32", 2.8),
    make_row("pruned-int8", "ort", "int8", 1.0, threads=1, p95_ms=1.2),
    make_row("pruned-int8", "openvino", "int8", 1.5),
    make_row("pruned-int8", "ort", "int8", 40.0, batch=64),
    make_row("pruned-int8", "openvino-throughput", "int8", 64.0, batch=64),
    make_row("dense", "eager", "f32", 400.0, batch=64),
    make_row("dense", "ort", "f32", 200.0, batch=64),
]


def speedup_values(rows: list[BenchmarkRow], name: str, batch: int) -> dict[str, float]:
    return {kind: ratio.value for kind, ratio in speedups(rows, name, batch).items()}


def timed_row(candidate: str, runtime: Runtime, round_ms: list[float], **fields: Any) -> BenchmarkRow:
    return make_row(candidate, runtime, "f32", sorted(round_ms)[len(round_ms) // 2], round_ms=round_ms, **fields)


STEADY_MS = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0]


def test_a_speedup_has_the_interval_of_its_rounds_and_of_the_measurement_error() -> None:
    dense, pruned = timed_row("dense", "ort", [2 * ms for ms in STEADY_MS]), timed_row("pruned", "ort", STEADY_MS[::-1])
    ratio = speedup(dense, pruned)
    assert ratio.value == pytest.approx(2.0)
    assert 1.9 < ratio.low < 2.0 < ratio.high < 2.1
    with_error = speedup(dense, pruned, error=0.5)
    assert (with_error.low, with_error.high) == pytest.approx((2 / 1.5, 3.0))
    drifting_ms = [ms * (1 + number) for number, ms in enumerate(STEADY_MS)]  # a drift of both cancels
    drifting_rows = timed_row("dense", "ort", [2 * ms for ms in drifting_ms]), timed_row("pruned", "ort", drifting_ms)
    assert speedup(*drifting_rows) == Ratio(2.0, pytest.approx(2.0), pytest.approx(2.0))  # type: ignore[arg-type]


def test_without_common_rounds_the_interval_is_unbounded() -> None:
    dense, pruned = timed_row("dense", "ort", [2.0] * 7), timed_row("pruned", "ort", [1.0] * 6)
    assert speedup(dense, pruned) == Ratio(2.0, 0.0, math.inf)
    assert speedup(ROWS[0], ROWS[-1].model_copy(update={"candidate": "x"})).high == math.inf
    screened = timed_row("pruned", "ort", [1.0] * 7, screened=True)
    assert speedup(dense, screened).low == 0.0
    assert speedup(dense, dense) == Ratio(1.0, 1.0, 1.0)


def test_ratios_are_stored_as_flat_metrics() -> None:
    ratio = Ratio(2.0, 1.5, 2.5)
    assert ratio_metrics("a", ratio) == {"a": 2.0, "a_low": 1.5, "a_high": 2.5}
    assert read_ratio(ratio_metrics("a", ratio), "a") == ratio
    unknown = Ratio(2.0, 0.0, math.inf)
    assert ratio_metrics("a", unknown) == {"a": 2.0}
    assert read_ratio({"a": 2.0}, "a") == unknown
    assert read_ratio({}, "a") is None


def test_shortlisted_cases_are_compared_and_the_rest_is_screened() -> None:
    ancestors = {"dense": "dense", "pruned": "pruned", "pruned-int8": "pruned"}
    shortlist = shortlist_cases(ROWS, ancestors, [("dense", "pruned")], 1)
    kinds = {(case.candidate, case.runtime, case.precision, case.threads) for case in shortlist}
    assert kinds == {
        ("dense", "eager", "f32", 1),  # baselines
        ("dense", "compile", "bf16", 2),
        ("dense", "openvino", "bf16", 2),
        ("pruned", "ort", "f32", 2),  # each candidate's best
        ("pruned-int8", "ort", "int8", 1),
        ("dense", "ort", "f32", 2),  # steps of the attribution
        ("dense", "openvino", "f32", 1),
    }
    assert shortlist == [row.case for row in ROWS if row.case in shortlist]  # in the order of the rows
    lucky_screening = make_row("pruned", "openvino", "f32", 0.1, threads=1)
    compared = make_row("pruned", "ort", "f32", 2.4)
    rows = merge_compared([*ROWS, lucky_screening], [compared])
    assert best_row(rows, "pruned", 1) == compared  # a lucky screening decides nothing
    assert sum(row.screened for row in rows) == len(ROWS)
    assert fastest_row(rows, lambda row: row.candidate == "pruned-int8" and row.batch == 1) is not None


def test_identical_graphs_give_the_measurement_error() -> None:
    rows = [
        make_row("dense", "ort", "f32", 2.0),
        make_row("dense-kd", "ort", "f32", 2.2),
        make_row("dense-kd", "openvino", "f32", 9.0),  # dense was not timed there
        make_row("dense", "ort", "f32", 2.0, threads=1),
        make_row("dense-kd", "ort", "f32", 4.0, threads=1, screened=True),
        make_row("dense", "ort", "f32", 8.0, batch=64),
        make_row("dense-kd", "ort", "f32", 4.0, batch=64),
    ]
    error, error_of_batch_64 = measurement_errors(rows, [("dense", "dense-kd")])
    assert error.error == pytest.approx(0.1)
    assert (error.candidates, error.runtime, error.threads) == (("dense", "dense-kd"), "ort", 2)
    assert (error_of_batch_64.batch, error_of_batch_64.error) == (64, pytest.approx(1.0))
    assert largest_errors([error, error_of_batch_64]) == pytest.approx({1: 0.1, 64: 1.0})
    assert largest_errors(measurement_errors(rows, [])) == {}


def test_baselines_take_the_better_layout_and_number_of_threads() -> None:
    baselines = baseline_rows(ROWS, 1)
    assert {kind: row.p50_ms for kind, row in baselines} == {"eager": 10.0, "pytorch": 6.0, "float": 3.0}
    assert baselines.eager.layout == "channels_last"
    assert baselines.eager.threads == 1  # files are searched over threads, too: a baseline must not be easier to beat
    swapped_rows = [row.model_copy(update={"p50_ms": 8.0}) if row.layout == "contiguous" else row for row in ROWS]
    assert baseline_rows(swapped_rows, 1).eager.layout == "contiguous"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pruned-int8", {"eager": 10.0, "pytorch": 6.0, "float": 3.0}),
        ("pruned", {"eager": 4.0, "pytorch": 2.4, "float": 1.2}),
        ("dense", {"eager": 10 / 3, "pytorch": 2.0, "float": 1.0}),
        ("unknown", {}),
    ],
)
def test_speedups_are_ratios_of_medians(name: str, expected: dict[str, float]) -> None:
    assert speedup_values(ROWS, name, 1) == pytest.approx(expected)
    # A machine half as fast changes nothing.
    slower_rows = [row.model_copy(update={"p50_ms": row.p50_ms * 2}) for row in ROWS]
    assert speedup_values(slower_rows, name, 1) == pytest.approx(expected)


def test_batches_are_separate_and_gpus_are_excluded() -> None:
    assert speedup_values(ROWS, "pruned-int8", 64) == pytest.approx({"eager": 10.0, "pytorch": 10.0, "float": 5.0})
    assert best_row(ROWS, "dense", 1) == ROWS[6]
    assert best_row(ROWS, "pruned", 64) is None
    assert fastest_row(ROWS, lambda row: row.runtime == "eager-cuda") is None


@pytest.mark.parametrize(
    ("name", "ancestor", "steps"),
    [
        ("pruned-int8", "pruned", [10.0, 5.0, 2.5, 1.0]),
        ("pruned", "pruned", [10.0, 5.0, 2.5, 2.5]),
        ("dense", "dense", [10.0, 4.5, 4.5, 3.0]),
    ],
)
def test_factors_multiply_to_the_total(name: str, ancestor: str, steps: list[float]) -> None:
    factors = attribute_speedup(ROWS, name, ancestor, 1)
    assert factors is not None
    assert factors.ms == steps
    assert factors.runtime * factors.structure * factors.precision == pytest.approx(factors.total)
    assert factors.total == pytest.approx(speedups(ROWS, name, 1)["eager"].value)
    candidate_row = best_row(ROWS, name, 1)
    assert candidate_row is not None
    assert (factors.on, factors.threads, factors.ends_in) == (
        candidate_row.runtime,
        candidate_row.threads,
        candidate_row.precision,
    )


def test_no_attribution_where_a_row_is_missing() -> None:
    assert attribute_speedup(ROWS, "unknown", "dense", 1) is None
    assert attribute_speedup(ROWS, "pruned-int8", "pruned", 64) is None
    remaining_rows = [row for row in ROWS if (row.candidate, row.runtime) != ("dense", "ort")]
    assert attribute_speedup(remaining_rows, "pruned-int8", "pruned", 1) is None


def test_without_dense_in_eager_there_is_no_speedup() -> None:
    rows = [row for row in ROWS if row.runtime != "eager"]
    with pytest.raises(ArtifactError, match=r"dense could not be timed in PyTorch eager f32 at batch 1.*delete"):
        speedups(rows, "pruned", 1)
    with pytest.raises(ArtifactError, match="batch 7"):
        baseline_rows(ROWS, 7)


def test_candidate_metrics_are_flat() -> None:
    process = ProcessFootprint(
        candidate="pruned-int8",
        runtime="ort",
        precision="int8",
        import_ms=100.0,
        load_ms=8.0,
        first_call_ms=2.0,
        peak_mb=90.0,
    )
    processes = [
        process,
        process.model_copy(update={"precision": "bf16", "peak_mb": 1.0, "load_ms": 1.0, "first_call_ms": 1.0}),
        process.model_copy(update={"candidate": "dense", "peak_mb": 2.0, "load_ms": 2.0, "first_call_ms": 2.0}),
    ]
    assert candidate_metrics(ROWS, processes, "pruned-int8", 64) == pytest.approx(
        {
            "latency/ort_b1_p50_ms": 1.0,
            "latency/ort_b1_p95_ms": 1.2,
            "throughput/ort_b64_ips": 1600.0,
            "throughput/ov-streams_b64_ips": 1000.0,
            "memory/ort_peak_mb": 90.0,
            "start/ort_load_ms": 8.0,
            "start/ort_first_call_ms": 2.0,
            "latency/ov_b1_p50_ms": 1.5,
            "best/latency_ms": 1.0,
            "best/latency_threads": 1,
            "best/throughput_ips": 1600.0,
            "best/throughput_threads": 2,
            "speedup/eager_b1": 10.0,
            "speedup/pytorch_b1": 6.0,
            "speedup/float_b1": 3.0,
            "speedup/eager_b64": 10.0,
            "speedup/pytorch_b64": 10.0,
            "speedup/float_b64": 5.0,
        }
    )
    assert candidate_metrics(ROWS, processes, "unknown", 64) == {}
