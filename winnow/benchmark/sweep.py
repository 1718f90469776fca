"""The sweep of one file over batch sizes, threads and runtimes, all timed in one run.

    result = sweep("pruned-int8", folder, "int8", images, batches=(1, 8, 64), settings=settings)

The rows are those of the benchmark. As there, a combination is timed only if its predictions are the file's own, and
all of the same batch and threads are timed interleaved. OpenVINO runs in both of its modes: latency (one call uses all
threads) and throughput (as many streams as divide both threads and batch; the batch is split among them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from winnow.benchmark.grid import BenchmarkResult, time_cases
from winnow.benchmark.prediction_check import sample_check_images
from winnow.config import Benchmark
from winnow.data.dataset import ImageSet
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.runtime_properties import list_cpu_runtimes
from winnow.hardware import cores
from winnow.records.benchmark import BenchmarkCase, BenchmarkRow, Precision

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def sweep(
    name: str, folder: Path, precision: Precision, images: ImageSet, batches: Sequence[int], settings: Benchmark
) -> BenchmarkResult:
    """Time the file of candidate `name`, f32 or int8, for each batch and all powers of two of threads.

    Raises ArtifactError for a file that cannot be opened.
    """
    pixels_NHWC, predictions = sample_check_images(images, {name: folder})
    grid = sweep_cases(name, precision, batches, thread_counts(cores()))
    return time_cases(grid, lambda case: open_case(folder, case), pixels_NHWC, predictions, settings)


def thread_counts(threads: int) -> list[int]:
    """Return 1, 2, 4 ... and all threads."""
    return sorted({*(2**exponent for exponent in range(threads.bit_length()) if 2**exponent <= threads), threads})


def sweep_cases(name: str, precision: Precision, batches: Sequence[int], threads: Sequence[int]) -> list[BenchmarkCase]:
    """Return all cases of a sweep."""
    grid = []
    for batch in sorted(set(batches)):
        for thread_count in threads:
            kinds = list_cpu_runtimes(precision, batch, thread_count)
            grid += [BenchmarkCase(name, *kind, layout="file", batch=batch, threads=thread_count) for kind in kinds]
    return grid


def best_sweep_row(rows: Sequence[BenchmarkRow], key: str) -> BenchmarkRow | None:
    """Return the row with the least p50_ms (key latency) or the most images/s (throughput); None without rows."""
    if not rows:
        return None
    return min(rows, key=lambda row: row.p50_ms) if key == "latency" else max(rows, key=_rate)


def _rate(row: BenchmarkRow) -> float:
    return row.images_per_s
