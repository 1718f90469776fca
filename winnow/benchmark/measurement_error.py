"""Measurement error: how far two timings of the same graph differ; no interval of a speed-up is narrower.

The candidate tree contains files whose graphs differ only in their weights: dense, its control dense-kd and a sparse
dense; a student and the same student without a teacher. Timed in the same runtime, precision, batch and threads in one
run, their true ratio is 1. The measured difference is the error of that run. An interval over its rounds does not show
it, because memory layout and the assignment of threads to cores stay the same from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from winnow.deploy.runtimes import GPU_RUNTIMES

Row = dict[str, Any]
CELL_KEYS = ("runtime", "precision", "threads", "batch")
"""Keys that two rows must share for their times to be comparable."""


def identical_graphs(digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every pair of candidates whose files have the same digest (winnow.deploy.onnx_export.graph_digest)."""
    return [(a, b) for a, b in combinations(digests, 2) if digests[a] == digests[b]]


def measurement_errors(rows: list[Row], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Return the difference of each pair in each compared cell; `error`: their `time_difference`."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["layout"] == "file" and row["runtime"] not in GPU_RUNTIMES and "screened" not in row:
            times.setdefault(tuple(row[key] for key in CELL_KEYS), {})[row["candidate"]] = row["p50_ms"]
    return [
        {
            "candidates": list(pair),
            **dict(zip(CELL_KEYS, cell, strict=True)),
            "error": time_difference(by_candidate[pair[0]], by_candidate[pair[1]]),
        }
        for pair in pairs
        for cell, by_candidate in times.items()
        if pair[0] in by_candidate and pair[1] in by_candidate
    ]


def time_difference(first_ms: float, second_ms: float) -> float:
    """Return by which fraction the larger of two times exceeds the smaller one."""
    return max(first_ms, second_ms) / min(first_ms, second_ms) - 1


def largest_errors(errors: list[Row]) -> dict[int, float]:
    """Return batch -> largest error; batches without a compared pair are left out."""
    largest: dict[int, float] = {}
    for row in errors:
        largest[row["batch"]] = max(row["error"], largest.get(row["batch"], 0.0))
    return dict(sorted(largest.items()))


def describe_errors(errors: list[Row]) -> str:
    """Return a sentence on the largest error of each batch; empty without errors."""
    if not errors:
        return ""
    errors_by_batch = " and ".join(
        f"{error:.0%} {'for one image' if batch == 1 else f'in batches of {batch}'}"
        for batch, error in largest_errors(errors).items()
    )
    names = sorted({name for row in errors for name in row["candidates"]})
    return (
        f"measurement error: files with the same graph ({', '.join(names)}) differed by up to "
        f"{errors_by_batch}; no interval of a speed-up is narrower"
    )
