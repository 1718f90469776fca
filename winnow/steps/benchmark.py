"""Step 5: measure how fast the files are on this machine. Only this step's record holds times, and the machine with
them.

Every case is screened; each candidate's fastest, the baselines and close cases are compared in rounds of their own,
which give the speed-ups, their intervals and the measurement error (winnow/benchmark/grid.py,
winnow/benchmark/speedups.py).

Beside the times it writes each file's logits for all validation images where it is fastest, one .npy per candidate,
runtime and precision: a bf16 that is fast and less accurate is judged by its own answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.benchmark_warnings import benchmark_warnings
from winnow.benchmark.candidate_files import CandidateFiles, CaseOpener, finalists, footprint_cases
from winnow.benchmark.cases import plan_cases
from winnow.benchmark.grid import BenchmarkResult, compare_cases, screening_settings, time_cases
from winnow.benchmark.int8_coverage import measure_int8_coverage
from winnow.benchmark.measurement_error import (
    REPEATED_PAIR,
    largest_errors,
    measurement_errors,
)
from winnow.benchmark.memory_footprint import measure_footprint
from winnow.benchmark.peak_throughput import highest_rates, measure_peaks, shares_of_peak
from winnow.benchmark.prediction_check import predict_all, sample_check_images
from winnow.benchmark.speedups import (
    attribute_speedup,
    baseline_rows,
    best_row,
    candidate_metrics,
    merge_compared,
)
from winnow.benchmark.timing import wait_until_idle
from winnow.config import Benchmark, Config
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.runtime_properties import (
    INT8_PRECISIONS,
    NEEDED_AGREEMENT,
)
from winnow.evaluation.metrics import benchmark_logits_file
from winnow.hardware import cores, has_fast_bf16
from winnow.records import (
    BenchmarkDetails,
    BenchmarkRecord,
    describe_files,
    publish,
    record_digest,
    this_machine,
    write_record,
)
from winnow.records.benchmark import (
    AbsentCase,
    Attributions,
    BenchmarkCase,
    BenchmarkConditions,
    BestRows,
    Int8Coverage,
    MeasurementError,
    Precision,
    ProcessFootprint,
)
from winnow.timing_lock import compute_lock, timing_lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkTimes:
    """The measurements of all files on this machine."""

    outcome: BenchmarkResult
    errors: list[MeasurementError]
    best_rows: dict[str, BestRows]
    processes: list[ProcessFootprint]
    peak: dict[Precision, float]
    """Precision -> multiply-adds per second of a matrix product."""


def benchmark(config: Config, data: Path, candidates: Path, out: Path) -> BenchmarkRecord:
    """Time every candidate's file, measure its footprint, and write the figures to `out`."""
    settings, files, images = config.benchmark, CandidateFiles.read(config, candidates), load_images(data)
    pixels_NHWC, answers = sample_check_images(images, {name: candidates / name for name in files.records})
    gpu = _gpu_name()
    times = _measure(settings, files, (pixels_NHWC, answers), bool(gpu))
    conditions = BenchmarkConditions(
        images_checked=len(pixels_NHWC),
        needed_agreement=NEEDED_AGREEMENT,
        threads=cores(),
        image_size=pixels_NHWC.shape[1],
    )
    record = BenchmarkRecord(
        step="benchmark",
        name="benchmark",
        parameters=settings.model_dump(mode="json", exclude={"target"}),
        inputs={"data": record_digest(data), **{name: record_digest(candidates / name) for name in files.records}},
        metrics={
            "cases/timed": len(times.outcome.rows),
            "cases/refused": len(times.outcome.refused),
            **{f"error/b{batch}": error for batch, error in largest_errors(times.errors).items()},
        },
        details=_details(files, times, settings.large_batch, conditions),
        warnings=benchmark_warnings(times.outcome, times.best_rows),
        machine=this_machine(gpu),
    )
    with publish(out) as folder:
        answer_files = _write_answers(times.best_rows, images, candidates, folder)
        write_record(folder, record.model_copy(update={"artifacts": describe_files(folder, *answer_files)}))
    return record


def _measure(
    settings: Benchmark,
    files: CandidateFiles,
    check: tuple[NDArray[np.uint8], Mapping[str, NDArray[np.int64]]],
    has_gpu: bool,
) -> BenchmarkTimes:
    """Time all cases, compare the fastest, and measure footprints and peaks. `check`: pixels NHWC, and each
    candidate's classes for them.
    """
    (pixels_NHWC, answers), large = check, settings.large_batch
    cases = plan_cases(files.int8, settings, cores(), has_gpu, files.networks)
    with timing_lock():
        before = measure_peaks()
    open_candidate = CaseOpener(files.folder)
    outcome = time_cases(cases, open_candidate, pixels_NHWC, answers, screening_settings(settings))
    outcome.absent += _unavailable_cases(has_gpu)
    compared = compare_cases(finalists(outcome.rows, files, large), open_candidate, pixels_NHWC, settings)
    outcome.rows = merge_compared(outcome.rows, compared)
    best_rows = {
        name: BestRows(latency=best_row(outcome.rows, name, 1), throughput=best_row(outcome.rows, name, large))
        for name in files.records
    }
    with timing_lock():
        processes = _footprints(footprint_cases(files, settings, best_rows), files.folder, pixels_NHWC.shape[1])
        peak = highest_rates(before, measure_peaks()) if settings.grid == "full" else before
    errors = measurement_errors(compared, [REPEATED_PAIR, *files.identical])
    return BenchmarkTimes(outcome, errors, best_rows, processes, peak)


def _details(
    files: CandidateFiles, times: BenchmarkTimes, large: int, conditions: BenchmarkConditions
) -> BenchmarkDetails:
    rows, errors = times.outcome.rows, largest_errors(times.errors)
    return BenchmarkDetails(
        rows=rows,
        processes=times.processes,
        executed=_int8_coverage(times.outcome, files.folder),
        peaks=times.peak,
        peak_share={
            name: shares_of_peak(times.best_rows[name], record.metrics["compute/macs"], times.peak)
            for name, record in files.records.items()
        },
        refused=times.outcome.refused,
        absent=times.outcome.absent,
        candidates={name: candidate_metrics(rows, times.processes, name, large, errors) for name in files.records},
        identical_graphs=files.identical,
        measurement_error=times.errors,
        best=times.best_rows,
        baselines={f"b{batch}": baseline_rows(rows, batch) for batch in (1, large)},
        attribution={
            name: Attributions(
                latency=attribute_speedup(rows, name, ancestor, 1),
                throughput=attribute_speedup(rows, name, ancestor, large),
            )
            for name, ancestor in files.ancestors.items()
        },
        conditions=conditions,
    )


@compute_lock()
def _write_answers(best_rows: Mapping[str, BestRows], images: ImageSet, candidates: Path, folder: Path) -> list[str]:
    """Write every candidate's logits (V, C) in the cases where it is fastest, and return the names of the files."""
    indices = images.indices(VALIDATION)
    written: list[str] = []
    for name, rows in best_rows.items():
        for row in (rows.latency, rows.throughput):
            if row is None or (file := benchmark_logits_file(row)) in written:
                continue
            predict = open_case(candidates / name, row.case)
            np.save(folder / file, predict_all(predict, row.batch, images.images_NHWC, indices))
            written.append(file)
    return written


@compute_lock()
def _int8_coverage(outcome: BenchmarkResult, candidates: Path) -> list[Int8Coverage]:
    """Return the share of each int8 file that a runtime computes in int8, from the runtime's own graph."""
    rows = [row for row in outcome.rows if row.precision in INT8_PRECISIONS]
    cases = {(row.candidate, row.runtime, row.precision): row.case for row in rows}
    return [measure_int8_coverage(candidates / case.candidate, case) for case in cases.values()]


def _footprints(cases: Sequence[BenchmarkCase], candidates: Path, image_size: int) -> list[ProcessFootprint]:
    """Measure each case in a fresh process."""
    wait_until_idle()
    log.info("benchmark: memory and start-up of %d files, each in a process of its own", len(cases))
    return [measure_footprint(candidates / case.candidate, case, image_size) for case in cases]


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _unavailable_cases(cuda: bool) -> list[AbsentCase]:
    """Return the cases that this machine cannot run."""
    unavailable = []
    if not has_fast_bf16():
        reason = "the processor has neither avx512_bf16 nor amx_bf16: bf16 would be emulated"
        unavailable.append(AbsentCase(runtime="all", precision="bf16", reason=reason))
    if not cuda:
        unavailable.append(AbsentCase(runtime="eager-cuda", precision="all", reason="no CUDA device"))
    return unavailable
