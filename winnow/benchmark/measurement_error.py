"""How far two timings of the same thing differ: what a speed-up's interval must be at least as wide as.

A tree holds files whose graphs are identical but for their weights: dense, its control dense-kd and a sparse dense; a
student and the same student without a teacher. Timed on the same runtime, precision, batch and threads in one run,
their true ratio is 1. What is measured instead is the error of that run, which no interval over its rounds shows: where
memory came to lie and which core a thread sits on stay the same from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from winnow.deploy.runtimes import ON_GPU

Row = dict[str, Any]
CELL = ("runtime", "precision", "threads", "batch")
"""What two files must share for their times to be comparable."""


def identical_graphs(digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every pair of candidates whose files have the same digest (winnow.deploy.onnx_export.graph_digest)."""
    return [(a, b) for a, b in combinations(digests, 2) if digests[a] == digests[b]]


def measurement_errors(rows: list[Row], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Return how far each pair differs in each cell in which both were compared; `error`: their `time_difference`."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["layout"] == "file" and row["runtime"] not in ON_GPU and "screened" not in row:
            times.setdefault(tuple(row[key] for key in CELL), {})[row["candidate"]] = row["p50_ms"]
    return [
        {
            "candidates": list(pair),
            **dict(zip(CELL, cell, strict=True)),
            "error": time_difference(of[pair[0]], of[pair[1]]),
        }
        for pair in pairs
        for cell, of in times.items()
        if pair[0] in of and pair[1] in of
    ]


def time_difference(one_ms: float, other_ms: float) -> float:
    """Return by which share of the smaller of two times the larger one exceeds it."""
    return max(one_ms, other_ms) / min(one_ms, other_ms) - 1


def largest_errors(errors: list[Row]) -> dict[int, float]:
    """Return the largest error of each batch; a batch in which no pair was compared is left out."""
    largest: dict[int, float] = {}
    for row in errors:
        largest[row["batch"]] = max(row["error"], largest.get(row["batch"], 0.0))
    return dict(sorted(largest.items()))


def describe_errors(errors: list[Row]) -> str:
    """Return a sentence for people on the largest error of each batch; empty where there are none."""
    if not errors:
        return ""
    told = " and ".join(
        f"{error:.0%} {'for one image' if batch == 1 else f'in batches of {batch}'}"
        for batch, error in largest_errors(errors).items()
    )
    names = sorted({name for row in errors for name in row["candidates"]})
    return (
        f"measurement error: files with the same graph ({', '.join(names)}) differed by up to {told}; no interval of a "
        "speed-up is narrower"
    )
