"""How far two timings of the same thing differ: what a speed-up's interval must be at least as wide as.

A tree holds files whose graphs are identical but for their weights: dense, its control dense-kd and a sparse dense; a
student and the same student without a teacher. Timed on the same runtime, precision, batch and threads in one run,
their true ratio is 1. What is measured instead is the error of that run, which no interval over its rounds shows: where
memory came to lie and which core a thread sits on stay the same from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from winnow.runtimes import ON_GPU

Row = dict[str, Any]


def identical_graphs(digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every pair of candidates whose files have the same digest (winnow.export.graph_digest)."""
    return [(a, b) for a, b in combinations(digests, 2) if digests[a] == digests[b]]


def measurement_errors(rows: list[Row], pairs: list[tuple[str, str]], batch: int) -> list[Row]:
    """Return how far each pair differs in each cell of this batch in which both were compared.

    `error`: the larger time as a share of the smaller one, less 1.
    """
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["batch"] == batch and row["layout"] == "file" and row["runtime"] not in ON_GPU and "screened" not in row:
            times.setdefault((row["runtime"], row["precision"], row["threads"]), {})[row["candidate"]] = row["p50_ms"]
    return [
        {
            "candidates": list(pair),
            "runtime": runtime,
            "precision": precision,
            "threads": threads,
            "batch": batch,
            "error": max(of[pair[0]], of[pair[1]]) / min(of[pair[0]], of[pair[1]]) - 1,
        }
        for pair in pairs
        for (runtime, precision, threads), of in times.items()
        if pair[0] in of and pair[1] in of
    ]


def largest_error(errors: list[Row]) -> float:
    """Return the largest of them; 0 where the tree holds no identical graphs."""
    return max((row["error"] for row in errors), default=0.0)


def describe_errors(errors: list[Row]) -> str:
    """Return a sentence for people on the largest error of each batch; empty where there are none."""
    if not errors:
        return ""
    largest = {batch: largest_error([row for row in errors if row["batch"] == batch]) for batch in _batches(errors)}
    told = " and ".join(
        f"{error:.0%} {'for one image' if batch == 1 else f'in batches of {batch}'}" for batch, error in largest.items()
    )
    names = sorted({name for row in errors for name in row["candidates"]})
    return (
        f"measurement error: files with the same graph ({', '.join(names)}) differed by up to {told}; no interval of a "
        "speed-up is narrower"
    )


def _batches(errors: list[Row]) -> list[int]:
    return sorted({int(row["batch"]) for row in errors})
