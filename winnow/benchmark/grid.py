"""The benchmark grid and its timing: check predictions, screen all cases, then compare the important ones.

A case is a candidate in a runtime (winnow/deploy/inference_runtimes.py), at a precision, with a batch size and a number
of threads; winnow/benchmark/cases.py plans them. There are two passes. `time_cases` screens every case: cases of the
same batch and threads are timed in turns for a few rounds, which shows the fastest runtime and threads of a file.
`compare_cases` times the important cases again, one or two of each candidate and the baselines: all of one batch in the
same rounds, and more rounds. The fastest of many short timings is low partly by chance, so published times of these
cases come from the second pass alone, and its rounds are the pairs for the interval of a speed-up. Every visit starts
idle and warmed up (winnow/benchmark/timing.py).

p50 and p95 are over all timed calls. `round_ms` holds the median of each round. `spread` is (largest - smallest) / p50
of these; `inner_spread` leaves out the fastest and the slowest round, since one disturbed round does not change p50. A
p95 of fewer than 200 calls would rest on a few calls and is not given.

Before a case is timed, its predictions are compared with the candidate's own (validation_logits.npy). A runtime whose
predictions differ is listed as refused, with the agreement, and not timed.

The times are of one process with one call at a time, not of a loaded server, and times of two machines are never
compared. Reddi et al. 2019, MLPerf Inference (arXiv 1911.02549) calls these cases single-stream and offline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.prediction_check import agreement
from winnow.benchmark.timing import SecondsByRound, TimedFile, medians_ms, time_in_turns
from winnow.config import Benchmark
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT, Predict, RuntimeUnavailable
from winnow.eta import ProgressTimer
from winnow.records.benchmark import AbsentCase, BenchmarkCase, BenchmarkRow, RefusedCase
from winnow.timing_lock import compute_lock, timing_lock

log = logging.getLogger(__name__)

SAMPLES_FOR_P95 = 200
CALLS_PER_ROUND_LARGE = 3
SCREENING_ROUNDS = 2
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class BenchmarkResult:
    """Timed rows, cases with wrong predictions, and cases that cannot run on this machine."""

    rows: list[BenchmarkRow] = field(default_factory=list)
    refused: list[RefusedCase] = field(default_factory=list)
    absent: list[AbsentCase] = field(default_factory=list)


def time_cases(
    cases: list[BenchmarkCase],
    open_case: Callable[[BenchmarkCase], Predict],
    pixels_NHWC: NDArray[np.uint8],
    answers: Mapping[str, NDArray[np.int64]],
    settings: Benchmark,
) -> BenchmarkResult:
    """Time all cases; cases of one batch and number of threads share the `settings.rounds` rounds.

    `answers`: candidate -> the class that it predicts for each of the pixels.
    """
    result, timer = BenchmarkResult(), ProgressTimer(len(cases), SECONDS_BETWEEN_LINES)
    groups: dict[tuple[int, int], list[BenchmarkCase]] = {}
    checked: dict[BenchmarkCase, float] = {}
    for case in cases:
        groups.setdefault((case.batch, case.threads), []).append(case)
    done = 0
    for (batch, threads), group in groups.items():
        previous_threads = set_torch_threads(threads)
        try:
            with compute_lock():
                opened = _open_all(group, open_case, pixels_NHWC, answers, result, checked)
            with timing_lock():
                result.rows += _time_group(opened, _take(pixels_NHWC, 0, batch), settings)
        finally:
            set_torch_threads(previous_threads)
        done += len(group)
        if timer.is_due() or done == len(cases):
            log.info("benchmark: %d of %d cases timed, about %s left", done, len(cases), timer.left(done))
    return result


def _open_all(
    group: list[BenchmarkCase],
    open_case: Callable[[BenchmarkCase], Predict],
    pixels_NHWC: NDArray[np.uint8],
    answers: Mapping[str, NDArray[np.int64]],
    result: BenchmarkResult,
    checked: dict[BenchmarkCase, float],
) -> list[tuple[BenchmarkCase, Predict]]:
    """Return the cases of a group that run here with correct predictions; add the others to `result`.

    `checked`: the agreement of cases that were compared before, under the case with one thread; more are added. A case
    is compared once for all numbers of threads.
    """
    opened = []
    for case in group:
        try:
            predict = open_case(case)
        except RuntimeUnavailable as error:
            row = AbsentCase(runtime=case.runtime, precision=case.precision, reason=str(error))
            if row not in result.absent:
                result.absent.append(row)
                log.info("benchmark: %s %s skipped: %s", case.runtime, case.precision, error)
            continue
        key = replace(case, threads=1)
        if key not in checked:
            checked[key] = agreement(predict, case.batch, pixels_NHWC, answers[case.candidate])
        share, needed = checked[key], NEEDED_AGREEMENT[case.precision]
        if share >= needed:
            opened.append((case, predict))
            continue
        result.refused.append(RefusedCase(**asdict(case), agreement=share, needed=needed, images=len(pixels_NHWC)))
        log.warning(
            "%s on %s %s (batch %d) is not timed: its predictions agree with the file's own on %.1f %% of %d images, "
            "%.0f %% are needed",
            *(case.candidate, case.runtime, case.precision, case.batch, share * 100, len(pixels_NHWC), needed * 100),
        )
    return opened


def _take(pixels_NHWC: NDArray[np.uint8], start: int, batch: int) -> NDArray[np.uint8]:
    """Return `batch` images from position `start`, continuing at the start after the end."""
    return np.ascontiguousarray(pixels_NHWC[(np.arange(start, start + batch)) % len(pixels_NHWC)])


def compare_cases(
    cases: list[BenchmarkCase],
    open_case: Callable[[BenchmarkCase], Predict],
    pixels_NHWC: NDArray[np.uint8],
    settings: Benchmark,
) -> list[BenchmarkRow]:
    """Time cases that `time_cases` has checked; all cases of one batch share the same rounds."""
    rows: list[BenchmarkRow] = []
    for batch in sorted({case.batch for case in cases}, reverse=True):
        batch_cases = [case for case in cases if case.batch == batch]
        log.info("benchmark: comparing %d cases of batch %d, interleaved", len(batch_cases), batch)
        previous_threads = set_torch_threads(batch_cases[0].threads)
        try:
            with compute_lock():
                opened = [(case, _open_with_threads(case, open_case)) for case in batch_cases]
            with timing_lock():
                rows += _time_group(opened, _take(pixels_NHWC, 0, batch), settings)
        finally:
            set_torch_threads(previous_threads)
    return rows


def _open_with_threads(case: BenchmarkCase, open_case: Callable[[BenchmarkCase], Predict]) -> Predict:
    """Open a case with its number of PyTorch threads, which torch.compile reads while it compiles."""
    set_torch_threads(case.threads)
    return open_case(case)


def screening_settings(settings: Benchmark) -> Benchmark:
    """Return the settings of the first pass: as many calls per visit as in the comparison, in fewer rounds, and with
    half the time to warm up.
    """
    return settings.model_copy(
        update={
            "rounds": SCREENING_ROUNDS,
            "samples": calls_per_round(1, settings) * SCREENING_ROUNDS,
            "warm_up_ms": settings.warm_up_ms / 2,
            "timed_ms": settings.timed_ms / 2,
        }
    )


def calls_per_round(batch: int, settings: Benchmark) -> int:
    """Return the number of timed calls per visit."""
    return -(-settings.samples // settings.rounds) if batch == 1 else CALLS_PER_ROUND_LARGE


def _time_group(
    opened: list[tuple[BenchmarkCase, Predict]], pixels_NHWC: NDArray[np.uint8], settings: Benchmark
) -> list[BenchmarkRow]:
    calls = calls_per_round(len(pixels_NHWC), settings)
    files = [TimedFile(predict, pixels_NHWC, case.threads) for case, predict in opened]
    seconds = time_in_turns(files, settings.rounds, calls, settings.warm_up_ms, settings.timed_ms)
    return [summarise_timings(case, by_round) for (case, _), by_round in zip(opened, seconds, strict=True)]


def summarise_timings(case: BenchmarkCase, seconds_by_round: SecondsByRound) -> BenchmarkRow:
    """Return a row of the record: milliseconds per call, images per second, and their spread.

    All rounds count alike: a slow round has fewer calls, so of each round as many calls count as the shortest has.
    """
    calls = min(len(seconds) for seconds in seconds_by_round)
    milliseconds = np.concatenate([np.asarray(seconds[:calls]) for seconds in seconds_by_round]) * 1e3
    round_ms = medians_ms(seconds_by_round)
    medians = sorted(round_ms)
    p50 = float(np.median(milliseconds))
    has_p95 = len(milliseconds) >= SAMPLES_FOR_P95
    return BenchmarkRow(
        **asdict(case),
        p50_ms=p50,
        p95_ms=float(np.percentile(milliseconds, 95)) if has_p95 else None,
        images_per_s=case.batch / p50 * 1e3,
        samples=len(milliseconds),
        round_ms=tuple(round_ms),
        spread=(max(medians) - min(medians)) / p50,
        inner_spread=(medians[-2] - medians[1]) / p50 if len(medians) > 3 else 0.0,
    )
