"""Which batch, how many threads and which runtime serve a file best: every combination, timed in one run.

    outcome = sweep("pruned-int8", folder, images, batches=(1, 8, 64), settings)      # rows as the benchmark has them

As everywhere a combination is timed only where its answers are the file's own, and all of the same batch and threads
take turns. OpenVINO runs in both of its modes: for latency (one call has all threads), and for throughput (as many
streams as both threads and batch divide by; the batch is dealt out to them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from winnow.benchmark.grid import BenchmarkResult, Row, checked_images, measure
from winnow.config import Benchmark
from winnow.data.dataset import ImageSet
from winnow.deploy.runtimes import BenchmarkCase, Precision, on_cpu, open_cell
from winnow.hardware import cores

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def sweep(
    name: str, folder: Path, precision: Precision, images: ImageSet, batches: Sequence[int], settings: Benchmark
) -> BenchmarkResult:
    """Time the file of candidate `name`, f32 or int8, at each of the batches and all powers of two of threads.

    Raises ArtifactError where it cannot be opened.
    """
    pixels_NHWC, answers = checked_images(images, {name: folder})
    grid = cells(name, precision, batches, thread_counts(cores()))
    return measure(grid, lambda cell: open_cell(folder, cell), pixels_NHWC, answers, settings)


def thread_counts(most: int) -> list[int]:
    """1, 2, 4 ... and all."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


def cells(name: str, precision: Precision, batches: Sequence[int], threads: Sequence[int]) -> list[BenchmarkCase]:
    """The grid of a sweep."""
    grid = []
    for batch in sorted(set(batches)):
        for count in threads:
            kinds = on_cpu(precision, batch, count)
            grid += [BenchmarkCase(name, *kind, layout="file", batch=batch, threads=count) for kind in kinds]
    return grid


def fastest_of(rows: Sequence[Row], key: str) -> Row | None:
    """The row with the least p50_ms (key latency) or the most images/s (throughput)."""
    if not rows:
        return None
    return min(rows, key=lambda row: float(row["p50_ms"])) if key == "latency" else max(rows, key=_rate)


def _rate(row: Row) -> float:
    return float(row["images_per_s"])
