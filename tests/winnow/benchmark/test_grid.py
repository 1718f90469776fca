from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.records import benchmark_row
from tests.winnow.benchmark.toy_predictions import LABELS, PIXELS, Array, predict_logits
from winnow.benchmark.benchmark_warnings import benchmark_warnings
from winnow.benchmark.grid import (
    SAMPLES_FOR_P95,
    SCREENING_ROUNDS,
    BenchmarkResult,
    calls_per_round,
    compare_cases,
    screening_settings,
    summarise_timings,
    time_cases,
)
from winnow.benchmark.timing import visiting_order
from winnow.config import Benchmark
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT, Predict, RuntimeUnavailable
from winnow.records.benchmark import AbsentCase, BenchmarkCase, BenchmarkRow, BestRows

SETTINGS = Benchmark(large_batch=8, samples=24, rounds=6, warm_up_ms=0, timed_ms=0)


def make_case(
    candidate: str = "dense", runtime: str = "ort", precision: str = "f32", batch: int = 1, threads: int = 1
) -> BenchmarkCase:
    return BenchmarkCase(candidate, runtime, precision, "file", batch, threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("cases", [1, 2, 3, 4, 7, 12])
def test_every_case_is_visited_once_per_round(cases: int) -> None:
    orders = [visiting_order(cases, round_) for round_ in range(2 * cases)]
    assert all(sorted(order) == list(range(cases)) for order in orders)
    assert {order[0] for order in orders} == set(range(cases))  # each one starts a round
    if cases >= 3:
        neighbours = {pair for order in orders for pair in itertools.pairwise(order)}
        assert (
            min(Counter(successor for _, successor in neighbours).values()) == 2
        )  # no case always has the same predecessor
        assert len({order[0] for order in orders[:3]}) == 3  # each round starts with another case
    assert visiting_order(0, 3) == []


class CountingOpener:
    """Open predict functions and count their calls."""

    def __init__(self, open_runtime: Callable[[BenchmarkCase], Predict] | None = None) -> None:
        self.calls: list[tuple[BenchmarkCase, int, int]] = []
        self.open_runtime = open_runtime or (lambda _case: predict_logits)

    def __call__(self, case: BenchmarkCase) -> Predict:
        predict = self.open_runtime(case)

        def counted_predict(pixels_NHWC: Array) -> Array:
            assert pixels_NHWC.flags["C_CONTIGUOUS"]
            self.calls.append((case, len(pixels_NHWC), torch.get_num_threads()))
            return predict(pixels_NHWC)

        return counted_predict


def test_cases_are_interleaved_warmed_and_called_with_their_batch_and_threads() -> None:
    cases = [make_case(name, batch=batch, threads=2) for batch in (8, 1) for name in ("dense", "pruned", "sparse")]
    open_case, threads_before = CountingOpener(), torch.get_num_threads()
    labels = dict.fromkeys(("dense", "pruned", "sparse"), LABELS)
    result = time_cases(cases, open_case, PIXELS, labels, SETTINGS)
    assert [(row.candidate, row.batch, row.threads) for row in result.rows] == [
        (case.candidate, case.batch, case.threads) for case in cases
    ]
    assert all(size == case.batch and threads == case.threads for case, size, threads in open_case.calls)
    assert torch.get_num_threads() == threads_before
    # Batch 1: 21 to check the predictions, then 6 rounds of 1 warm-up and 4 timed calls; batch 8: 3, then 6 of 1 and 3.
    call_counts = Counter(case for case, _, _ in open_case.calls)
    assert all(call_counts[case] == (21 + 6 * (1 + 4) if case.batch == 1 else 3 + 6 * (1 + 3)) for case in cases)
    timed_candidates = [case.candidate for case, size, _ in open_case.calls if size == 1][3 * 21 :]
    visits = [timed_candidates[start] for start in range(0, len(timed_candidates), 5)]
    assert [sorted(visits[start : start + 3]) for start in range(0, 18, 3)] == [["dense", "pruned", "sparse"]] * 6
    assert all(row.samples == (24 if row.batch == 1 else 18) for row in result.rows)
    assert all(len(row.round_ms) == 6 for row in result.rows)


def test_the_comparison_visits_all_cases_of_a_batch_in_the_same_rounds() -> None:
    cases = [make_case("dense", batch=batch, threads=threads) for batch in (8, 1) for threads in (2, 1)]
    open_case, threads_before = CountingOpener(), torch.get_num_threads()
    rows = compare_cases(cases, open_case, PIXELS, SETTINGS)
    assert [(row.batch, row.threads, len(row.round_ms)) for row in rows] == [
        (8, 2, 6),
        (8, 1, 6),
        (1, 2, 6),
        (1, 1, 6),
    ]
    assert all(threads == case.threads for case, _, threads in open_case.calls)  # each visit sets its own thread count
    assert torch.get_num_threads() == threads_before
    threads_of_batch_1 = [case.threads for case, size, _ in open_case.calls if size == 1]
    visits = [threads_of_batch_1[start] for start in range(0, len(threads_of_batch_1), 5)]
    assert [sorted(visits[start : start + 2]) for start in range(0, 12, 2)] == [[1, 2]] * 6


def test_screening_takes_fewer_and_shorter_rounds_of_as_many_calls() -> None:
    settings = Benchmark(samples=200, rounds=10)
    screening = screening_settings(settings)
    assert (screening.rounds, screening.samples) == (SCREENING_ROUNDS, 20 * SCREENING_ROUNDS)
    assert (screening.warm_up_ms, screening.timed_ms) == (settings.warm_up_ms / 2, settings.timed_ms / 2)
    assert calls_per_round(1, screening) == calls_per_round(1, settings)


def test_wrong_predictions_are_refused_with_their_agreement() -> None:
    flipped = np.random.default_rng(1).permutation(len(PIXELS))[:2]

    def open_runtime(case: BenchmarkCase) -> Predict:
        def predict_wrongly(pixels_NHWC: Array) -> Array:
            logits = predict_logits(pixels_NHWC)
            is_flipped = [any((image == PIXELS[index]).all() for index in flipped) for image in pixels_NHWC]
            return np.where(np.array(is_flipped)[:, None], -logits, logits)

        return predict_wrongly if case.runtime == "openvino" else predict_logits

    open_case = CountingOpener(open_runtime)
    cases = [make_case(runtime=runtime, batch=batch) for batch in (1, 8) for runtime in ("ort", "openvino")]
    result = time_cases(cases, open_case, PIXELS, {"dense": LABELS}, SETTINGS)
    assert [row.runtime for row in result.rows] == ["ort", "ort"]
    assert [(row.runtime, row.batch, row.needed, row.images) for row in result.refused] == [
        ("openvino", 1, 0.99, 21),
        ("openvino", 8, 0.99, 21),
    ]
    assert all(row.agreement == pytest.approx(19 / 21) for row in result.refused)
    assert sum(case.runtime == "openvino" for case, _, _ in open_case.calls) == 21 + 3  # checked, never timed


@pytest.mark.parametrize("precision", list(NEEDED_AGREEMENT))
@pytest.mark.parametrize("extra", [-1, 0])
def test_the_limit_of_agreement(precision: str, extra: int) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (100, 2, 2, 3), dtype=np.uint8)
    labels = predict_logits(pixels).argmax(1)
    wrong_labels = round(100 - 100 * NEEDED_AGREEMENT[precision]) - extra  # type: ignore[index]
    labels[:wrong_labels] = (labels[:wrong_labels] + 1) % 3
    result = time_cases([make_case(precision=precision)], CountingOpener(), pixels, {"dense": labels}, SETTINGS)
    assert (len(result.rows), len(result.refused)) == ((1, 0) if extra == 0 else (0, 1))


def test_unavailable_runtimes_are_listed_once_with_their_reason() -> None:
    def open_runtime(case: BenchmarkCase) -> Predict:
        if case.runtime == "compile":
            raise RuntimeUnavailable("no compiler: g++ is not on the PATH")
        return predict_logits

    cases = [make_case(runtime=runtime, batch=batch) for batch in (8, 1) for runtime in ("compile", "ort")]
    result = time_cases(cases, CountingOpener(open_runtime), PIXELS, {"dense": LABELS}, SETTINGS)
    assert result.absent == [
        AbsentCase(runtime="compile", precision="f32", reason="no compiler: g++ is not on the PATH")
    ]
    assert ([row.runtime for row in result.rows], result.refused) == (["ort", "ort"], [])
    all_unavailable = time_cases(cases[:1], CountingOpener(open_runtime), PIXELS, {"dense": LABELS}, SETTINGS)
    assert all_unavailable == BenchmarkResult(absent=result.absent)


def test_an_error_is_raised_and_the_thread_count_is_restored() -> None:
    threads_before = torch.get_num_threads()

    def open_broken_runtime(_case: BenchmarkCase) -> Predict:
        raise OSError("model.onnx")

    with pytest.raises(OSError, match=r"model\.onnx"):
        time_cases([make_case(threads=threads_before + 1)], open_broken_runtime, PIXELS, {"dense": LABELS}, SETTINGS)
    assert torch.get_num_threads() == threads_before


@pytest.mark.parametrize("samples", [SAMPLES_FOR_P95 - 5, SAMPLES_FOR_P95])
def test_a_row_equals_numpy_and_has_a_p95_from_200_calls_on(samples: int) -> None:
    seconds = np.random.default_rng(0).gamma(5, 0.001, samples)
    rounds = [round_seconds.tolist() for round_seconds in np.array_split(seconds, 5)]
    row = summarise_timings(make_case(batch=4), rounds)
    assert row.p50_ms == pytest.approx(np.median(seconds) * 1e3)
    assert row.images_per_s == pytest.approx(4 / np.median(seconds))
    assert row.samples == samples
    medians = [np.median(round_seconds) for round_seconds in rounds]
    assert row.spread == pytest.approx((max(medians) - min(medians)) / np.median(seconds))
    if samples < SAMPLES_FOR_P95:
        assert row.p95_ms is None
    else:
        assert row.p95_ms == pytest.approx(np.percentile(seconds, 95) * 1e3)
    assert (row.candidate, row.batch, row.layout) == ("dense", 4, "file")


def test_slow_rounds_count_as_much_as_fast_ones() -> None:
    """A slow round holds fewer calls in the same time; the median is that of two rounds out of three all the same."""
    fast, slow = [0.001] * 30, [0.003] * 10
    row = summarise_timings(make_case(), [fast, slow, slow])
    assert row.p50_ms == pytest.approx(3.0)
    assert row.samples == 30
    assert summarise_timings(make_case(), [fast, fast, slow]).p50_ms == pytest.approx(1.0)


def test_enough_samples_for_a_p95_as_shipped() -> None:
    settings = Benchmark(large_batch=2, samples=200, rounds=10, warm_up_ms=0, timed_ms=0)
    outcome = time_cases([make_case(), make_case(batch=2)], CountingOpener(), PIXELS, {"dense": LABELS}, settings)
    assert [row.p95_ms is not None for row in outcome.rows] == [True, False]


def test_noisy_timings_are_warned_of() -> None:
    def latency(*milliseconds: float) -> BenchmarkRow:
        return summarise_timings(make_case("x"), [[value / 1e3] * 40 for value in milliseconds])

    dense = latency(1.0, 1.0, 9.0, 1.05, 0.9)  # one round moves no median
    assert dense.spread == pytest.approx(8.1)
    assert dense.inner_spread == pytest.approx(0.05)
    steady = benchmark_row("x", batch=8)
    assert steady.inner_spread == 0.0
    best_rows = {
        "dense": BestRows(latency=dense, throughput=steady),
        "pruned": BestRows(latency=latency(1.0, 1.5, 1.0, 1.5, 1.5), throughput=steady),
        "untimed": BestRows(latency=None, throughput=None),
    }
    (warning,) = benchmark_warnings(BenchmarkResult(), best_rows)
    assert warning.startswith("times of pruned varied by up to 33% from round to round")
    assert benchmark_warnings(BenchmarkResult(), {"dense": best_rows["dense"], "untimed": best_rows["untimed"]}) == ()
    assert latency(1.0, 2.0, 3.0).inner_spread == 0.0


def test_missing_torch_compile_is_warned_of() -> None:
    outcome = BenchmarkResult()
    outcome.absent += [
        AbsentCase(runtime="compile", precision="f32", reason="torch.compile failed: CppCompileError"),
        AbsentCase(runtime="compile-autotune", precision="f32", reason="torch.compile failed: CppCompileError"),
        AbsentCase(runtime="eager-cuda", precision="all", reason="no CUDA device"),
    ]
    (warning,) = benchmark_warnings(outcome, {})
    assert warning.startswith(
        "compiled PyTorch did not run here (compile f32, compile-autotune f32: torch.compile failed: CppCompileError), "
        "so the best float PyTorch is that of the other cases"
    )
