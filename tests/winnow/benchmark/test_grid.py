from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tests.records import benchmark_row
from winnow.benchmark.grid import (
    SAMPLES_FOR_P95,
    BenchmarkResult,
    agreement,
    compare_cells,
    plan_cells,
    screening_settings,
    summarise_timings,
    time_cells,
)
from winnow.benchmark.timing import visiting_order
from winnow.config import Benchmark
from winnow.deploy.inference_runtimes import GPU_RUNTIMES, NEEDED_AGREEMENT, Predict, RuntimeUnavailable
from winnow.hardware import has_fast_bf16
from winnow.records.benchmark import AbsentCase, BenchmarkCase, BenchmarkRow, BestRows
from winnow.steps.benchmark import benchmark_warnings

Array = np.ndarray
SETTINGS = Benchmark(large_batch=8, samples=24, rounds=6, warm_up_ms=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)


def truth(pixels_NHWC: Array) -> Array:
    """Logits of three classes, a function of the image alone."""
    return pixels_NHWC.reshape(len(pixels_NHWC), -1)[:, :3].astype(np.float32)


ANSWERS = truth(PIXELS).argmax(1)


def cell(
    candidate: str = "dense", runtime: str = "ort", precision: str = "f32", batch: int = 1, threads: int = 1
) -> BenchmarkCase:
    return BenchmarkCase(candidate, runtime, precision, "file", batch, threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 7, 12])
def test_every_cell_is_visited_once_a_round(cells: int) -> None:
    orders = [visiting_order(cells, round_) for round_ in range(2 * cells)]
    assert all(sorted(order) == list(range(cells)) for order in orders)
    assert {order[0] for order in orders} == set(range(cells))  # each begins a round
    if cells >= 3:
        after = {pair for order in orders for pair in itertools.pairwise(order)}
        assert min(Counter(second for _, second in after).values()) == 2  # nobody always comes after the same one
        assert len({order[0] for order in orders[:3]}) == 3  # the next round begins elsewhere
    assert visiting_order(0, 3) == []


class Spy:
    """Opens cells that count their calls."""

    def __init__(self, answer: Callable[[BenchmarkCase], Predict] | None = None) -> None:
        self.calls: list[tuple[BenchmarkCase, int, int]] = []
        self.answer = answer or (lambda _cell: truth)

    def __call__(self, which: BenchmarkCase) -> Predict:
        predict = self.answer(which)

        def called(pixels_NHWC: Array) -> Array:
            assert pixels_NHWC.flags["C_CONTIGUOUS"]
            self.calls.append((which, len(pixels_NHWC), torch.get_num_threads()))
            return predict(pixels_NHWC)

        return called


def test_cells_are_interleaved_warmed_and_called_with_their_batch_and_threads() -> None:
    cells = [cell(name, batch=batch, threads=2) for batch in (8, 1) for name in ("dense", "pruned", "sparse")]
    spy, before = Spy(), torch.get_num_threads()
    answers = dict.fromkeys(("dense", "pruned", "sparse"), ANSWERS)
    outcome = time_cells(cells, spy, PIXELS, answers, SETTINGS)
    assert [(row.candidate, row.batch, row.threads) for row in outcome.rows] == [
        (which.candidate, which.batch, which.threads) for which in cells
    ]
    assert all(size == which.batch and threads == which.threads for which, size, threads in spy.calls)
    assert torch.get_num_threads() == before
    # Batch 1: 21 to check the answers, then 6 rounds of 1 warm-up and 4 timed calls; batch 8: 3, then 6 of 1 and 3.
    counted = Counter(which for which, _, _ in spy.calls)
    assert all(counted[which] == (21 + 6 * (1 + 4) if which.batch == 1 else 3 + 6 * (1 + 3)) for which in cells)
    timed = [which.candidate for which, size, _ in spy.calls if size == 1][3 * 21 :]
    visits = [timed[start] for start in range(0, len(timed), 5)]
    assert [sorted(visits[start : start + 3]) for start in range(0, 18, 3)] == [["dense", "pruned", "sparse"]] * 6
    assert all(row.samples == (24 if row.batch == 1 else 18) for row in outcome.rows)
    assert all(len(row.round_ms) == 6 for row in outcome.rows)


def test_the_comparison_visits_all_cells_of_a_batch_in_the_same_rounds() -> None:
    cells = [cell("dense", batch=batch, threads=threads) for batch in (8, 1) for threads in (2, 1)]
    spy, before = Spy(), torch.get_num_threads()
    rows = compare_cells(cells, spy, PIXELS, SETTINGS)
    assert [(row.batch, row.threads, len(row.round_ms)) for row in rows] == [
        (8, 2, 6),
        (8, 1, 6),
        (1, 2, 6),
        (1, 1, 6),
    ]
    assert all(threads == which.threads for which, _, threads in spy.calls)  # each visit sets its own
    assert torch.get_num_threads() == before
    single = [which.threads for which, size, _ in spy.calls if size == 1]
    visits = [single[start] for start in range(0, len(single), 5)]
    assert [sorted(visits[start : start + 2]) for start in range(0, 12, 2)] == [[1, 2]] * 6


def test_screening_takes_fewer_rounds_of_the_same_visits() -> None:
    few = screening_settings(Benchmark(samples=200, rounds=10))
    assert (few.rounds, few.samples) == (3, 60)


def test_wrong_answers_are_refused_with_the_number() -> None:
    flipped = np.random.default_rng(1).permutation(len(PIXELS))[:2]

    def answer(which: BenchmarkCase) -> Predict:
        def wrong(pixels_NHWC: Array) -> Array:
            logits = truth(pixels_NHWC)
            hit = [any((image == PIXELS[index]).all() for index in flipped) for image in pixels_NHWC]
            return np.where(np.array(hit)[:, None], -logits, logits)

        return wrong if which.runtime == "openvino" else truth

    spy = Spy(answer)
    cells = [cell(runtime=runtime, batch=batch) for batch in (1, 8) for runtime in ("ort", "openvino")]
    outcome = time_cells(cells, spy, PIXELS, {"dense": ANSWERS}, SETTINGS)
    assert [row.runtime for row in outcome.rows] == ["ort", "ort"]
    assert [(row.runtime, row.batch, row.needed, row.images) for row in outcome.refused] == [
        ("openvino", 1, 0.99, 21),
        ("openvino", 8, 0.99, 21),
    ]
    assert all(row.agreement == pytest.approx(19 / 21) for row in outcome.refused)
    assert sum(which.runtime == "openvino" for which, _, _ in spy.calls) == 21 + 3  # checked, and never timed


@pytest.mark.parametrize("precision", list(NEEDED_AGREEMENT))
@pytest.mark.parametrize("extra", [-1, 0])
def test_the_border_of_agreement(precision: str, extra: int) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (100, 2, 2, 3), dtype=np.uint8)
    answers = truth(pixels).argmax(1)
    wrong = round(100 - 100 * NEEDED_AGREEMENT[precision]) - extra  # type: ignore[index]
    answers[:wrong] = (answers[:wrong] + 1) % 3
    outcome = time_cells([cell(precision=precision)], Spy(), pixels, {"dense": answers}, SETTINGS)
    assert (len(outcome.rows), len(outcome.refused)) == ((1, 0) if extra == 0 else (0, 1))


def test_what_is_not_here_is_listed_once_with_its_reason() -> None:
    def answer(which: BenchmarkCase) -> Predict:
        if which.runtime == "compile":
            raise RuntimeUnavailable("no compiler: g++ is not on the PATH")
        return truth

    cells = [cell(runtime=runtime, batch=batch) for batch in (8, 1) for runtime in ("compile", "ort")]
    outcome = time_cells(cells, Spy(answer), PIXELS, {"dense": ANSWERS}, SETTINGS)
    assert outcome.absent == [
        AbsentCase(runtime="compile", precision="f32", reason="no compiler: g++ is not on the PATH")
    ]
    assert ([row.runtime for row in outcome.rows], outcome.refused) == (["ort", "ort"], [])
    nothing = time_cells(cells[:1], Spy(answer), PIXELS, {"dense": ANSWERS}, SETTINGS)
    assert nothing == BenchmarkResult(absent=outcome.absent)


def test_an_error_is_raised_and_the_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def broken(_cell: BenchmarkCase) -> Predict:
        raise OSError("model.onnx")

    with pytest.raises(OSError, match=r"model\.onnx"):
        time_cells([cell(threads=before + 1)], broken, PIXELS, {"dense": ANSWERS}, SETTINGS)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("batch", [1, 4, 21, 64])
def test_agreement_counts_every_image_once(batch: int) -> None:
    assert agreement(truth, batch, PIXELS, ANSWERS) == 1.0
    changed = ANSWERS.copy()
    changed[[3, 20]] = (changed[[3, 20]] + 1) % 3
    assert agreement(truth, batch, PIXELS, changed) == pytest.approx(19 / 21)


@pytest.mark.parametrize("samples", [SAMPLES_FOR_P95 - 1, SAMPLES_FOR_P95])
def test_a_row_against_numpy_and_p95_from_200_calls_only(samples: int) -> None:
    seconds = np.random.default_rng(0).gamma(5, 0.001, samples)
    rounds = [part.tolist() for part in np.array_split(seconds, 5)]
    row = summarise_timings(cell(batch=4), rounds)
    assert row.p50_ms == pytest.approx(np.median(seconds) * 1e3)
    assert row.images_per_s == pytest.approx(4 / np.median(seconds))
    assert row.samples == samples
    medians = [np.median(part) for part in rounds]
    assert row.spread == pytest.approx((max(medians) - min(medians)) / np.median(seconds))
    if samples < SAMPLES_FOR_P95:
        assert row.p95_ms is None
    else:
        assert row.p95_ms == pytest.approx(np.percentile(seconds, 95) * 1e3)
    assert (row.candidate, row.batch, row.layout) == ("dense", 4, "file")


def test_enough_samples_for_a_p95_as_shipped() -> None:
    settings = Benchmark(large_batch=2, samples=200, rounds=10, warm_up_ms=0)
    outcome = time_cells([cell(), cell(batch=2)], Spy(), PIXELS, {"dense": ANSWERS}, settings)
    assert [row.p95_ms is not None for row in outcome.rows] == [True, False]


def kinds(cells: list[BenchmarkCase]) -> Iterator[tuple[str, str, str]]:
    return ((which.candidate, which.runtime, which.precision) for which in cells)


@pytest.mark.parametrize("grid", ["quick", "full"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_plan(grid: str, threads: int) -> None:
    settings = Benchmark(grid=grid, large_batch=16)  # type: ignore[arg-type]
    cells = plan_cells({"dense": False, "dense-int8": True, "pruned": False}, settings, threads, cuda=False)
    assert len(cells) == len(set(cells))
    assert {(which.batch, which.threads) for which in cells} == {(b, t) for b in (1, 16) for t in {1, threads}}
    planned = set(kinds(cells))
    runtimes = {"ort", "openvino"} | ({"openvino-throughput"} if threads > 1 else set())
    assert {("dense-int8", runtime, "int8") for runtime in runtimes} == {k for k in planned if "int8" in k[0]}
    assert all(which.batch == 16 and which.threads > 1 for which in cells if which.runtime == "openvino-throughput")
    assert {("dense", "eager", "f32"), ("dense", "compile", "f32"), ("pruned", "openvino", "f32")} <= planned
    assert (("pruned", "eager", "f32") in planned) == (grid == "full")
    assert any(kind[2] == "bf16" for kind in planned) == has_fast_bf16()
    eager = {which.layout for which in cells if which.runtime == "eager"}
    assert eager == {"contiguous", "channels_last"}
    in_float = plan_cells(
        {"dense": False, "ladder": False}, settings, threads, False, {"dense"}
    )  # quantized, and all float
    assert {kind[:2] for kind in kinds(in_float) if kind[0] == "ladder"} == {("ladder", name) for name in runtimes}
    on_gpu = plan_cells({"dense": False, "dense-int8": True}, settings, threads, cuda=True)
    assert {which.threads for which in on_gpu if which.runtime in GPU_RUNTIMES} == {threads}
    files = {(which.candidate, which.runtime) for which in on_gpu if which.runtime in ("ort-cuda", "ort-tensorrt")}
    assert files == {("dense", "ort-cuda"), ("dense", "ort-tensorrt")}
    assert not any(which.runtime in GPU_RUNTIMES for which in cells)


def test_times_of_an_unsteady_machine_are_told_to_be_rough() -> None:
    def latency(*milliseconds: float) -> BenchmarkRow:
        return summarise_timings(cell("x"), [[value / 1e3] * 40 for value in milliseconds])

    dense = latency(1.0, 1.0, 9.0, 1.05, 0.9)  # one round moves no median
    assert dense.spread == pytest.approx(8.1)
    assert dense.inner_spread == pytest.approx(0.05)
    steady = benchmark_row("x", batch=8)
    assert steady.inner_spread == 0.0
    bests = {
        "dense": BestRows(latency=dense, throughput=steady),
        "pruned": BestRows(latency=latency(1.0, 1.5, 1.0, 1.5, 1.5), throughput=steady),
        "untimed": BestRows(latency=None, throughput=None),
    }
    (warning,) = benchmark_warnings(BenchmarkResult(), bests)
    assert warning.startswith("times of pruned varied by up to 33% from round to round")
    assert benchmark_warnings(BenchmarkResult(), {"dense": bests["dense"], "untimed": bests["untimed"]}) == ()
    assert latency(1.0, 2.0, 3.0).inner_spread == 0.0


def test_pytorch_that_does_not_compile_is_warned_of() -> None:
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
