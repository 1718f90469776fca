"""Cost of the benchmark step: each case is opened and called a few times, and multiplied by the benchmark's calls.

The benchmark screens all cases, compares the fastest of each candidate in more rounds (winnow/benchmark/grid.py), and
measures the memory footprint in processes of their own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from tasks.forecast.data_counts import Cost, Counts
from tasks.forecast.microbenchmarks import Microbenchmarks
from winnow.benchmark.cases import plan_cases
from winnow.benchmark.grid import SCREENING_ROUNDS, calls_per_round, screening_settings
from winnow.benchmark.memory_footprint import measure_footprint
from winnow.benchmark.prediction_check import CHECKED_IMAGES
from winnow.benchmark.timing import SLICE_SECONDS
from winnow.config import ROOT, Benchmark, Config, Quantize, topological_order
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.deploy.runtime_properties import Predict, RuntimeUnavailable
from winnow.hardware import cores
from winnow.records.benchmark import BenchmarkCase

COMPARED_CASES = 2
"""Cases compared per candidate: its fastest, and its share of the baselines."""


def benchmark_cost(config: Config, counts: Counts, microbenchmarks: Microbenchmarks, folder: Path) -> Cost:
    """Return the cost of the benchmark step. `folder` holds a subfolder with the ONNX file of each candidate."""
    settings = config.benchmark
    names = (ROOT, *topological_order(dict(config.candidates)))
    int8 = {name: isinstance(config.candidates.get(name), Quantize) for name in names}
    cases = plan_cases(int8, settings, cores(), cuda=False)
    seconds, fastest = _screening(cases, settings, counts, microbenchmarks)
    for (_, batch), call in fastest.items():
        compared = COMPARED_CASES * settings.rounds * _visit_seconds(settings, batch, call)
        seconds += compared + call * -(-counts.validation // batch)
    processes = (2 if settings.grid == "full" else 1) * len(names) + 1
    seconds += processes * _footprint_seconds(folder / ROOT, config.data.image_size)
    disk_mb = 2 * len(names) * counts.validation * counts.classes * 4 / 1e6
    return Cost(seconds, disk_mb, f"{len(cases)} cases of {len(names)} files, {processes} processes")


def _screening(
    cases: list[BenchmarkCase], settings: Benchmark, counts: Counts, microbenchmarks: Microbenchmarks
) -> tuple[float, dict[tuple[str, int], float]]:
    """Return the seconds of the screening, and the fastest call in seconds by (candidate, batch)."""
    seconds, screening = 0.0, screening_settings(settings)
    checked: set[BenchmarkCase] = set()  # the benchmark checks predictions with one number of threads
    fastest: dict[tuple[str, int], float] = {}
    compile_seconds: float | None = None
    open_predictors: list[Predict] = []  # the benchmark times the cases of a group interleaved, with all of them open
    group = (0, 0)
    for case in cases:
        key = (case.candidate, case.batch)
        if (case.batch, case.threads) != group:
            open_predictors, group = [], (case.batch, case.threads)
        threads_before = set_torch_threads(case.threads)
        try:
            if case.runtime == "compile":  # compiled once: it takes long, and about as long for every candidate
                if compile_seconds is None:
                    compile_seconds = microbenchmarks.time_session(case)[0]
                opening, call = compile_seconds, fastest.get(key, 0.0)
            else:
                opening, call, predict = microbenchmarks.time_session(case)
                open_predictors.append(predict)
        except RuntimeUnavailable:
            continue
        finally:
            set_torch_threads(threads_before)
        fastest[key] = min(call, fastest.get(key, call))
        seconds += opening + SCREENING_ROUNDS * _visit_seconds(screening, case.batch, call)
        if (key_without_threads := replace(case, threads=1)) not in checked:
            checked.add(key_without_threads)
            seconds += call * -(-min(counts.validation, CHECKED_IMAGES) // case.batch)
    return seconds, fastest


def _footprint_seconds(folder: Path, image_size: int) -> float:
    """Return the seconds of one measurement of the memory footprint, in a process of its own."""
    started = time.monotonic()
    measure_footprint(folder, BenchmarkCase(ROOT, "ort", "f32", "file", 1, cores()), image_size)
    return time.monotonic() - started


def _visit_seconds(settings: Benchmark, batch: int, call: float) -> float:
    """Return the seconds of one visit to a case whose call takes `call` seconds: pause, warm-up and timed calls."""
    timed = max(call * calls_per_round(batch, settings), settings.timed_ms / 1e3)
    return SLICE_SECONDS + max(call, settings.warm_up_ms / 1e3) + timed
