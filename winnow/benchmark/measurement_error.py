"""Measurement error: how far two timings of the same graph differ; no interval of a speed-up is narrower.

Dense is opened a second time and timed as if it were another file. The candidate tree may contain more files whose
graphs differ only in their weights: dense, its control dense-kd and a sparse dense; a student and the same student
without a teacher. Timed in the same runtime, precision, batch and threads in one run, their true ratio is 1. The
measured difference is the error of that run. An interval over its rounds does not show it, because memory layout and
the assignment of threads to cores stay the same from round to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from winnow.config import ROOT
from winnow.deploy.runtime_properties import GPU_RUNTIMES
from winnow.records.benchmark import BenchmarkCase, BenchmarkRow, MeasurementError

REPEATED_DENSE = "dense (repeated)"
"""The name under which dense is timed a second time. check_host.py has the same constant."""
REPEATED_PAIR = (ROOT, REPEATED_DENSE)


def identical_graphs(digests: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return every pair of candidates whose files have the same digest (winnow.deploy.onnx_export.graph_digest)."""
    return [(a, b) for a, b in combinations(digests, 2) if digests[a] == digests[b]]


def measurement_errors(rows: Sequence[BenchmarkRow], pairs: Sequence[tuple[str, str]]) -> list[MeasurementError]:
    """Return the difference of each pair in each compared case; `error`: their `time_difference`."""
    times: dict[BenchmarkCase, dict[str, float]] = {}
    for row in rows:
        if row.layout == "file" and row.runtime not in GPU_RUNTIMES and not row.screened:
            times.setdefault(replace(row.case, candidate=""), {})[row.candidate] = row.p50_ms
    return [
        MeasurementError(
            candidates=(first, second),
            runtime=case.runtime,
            precision=case.precision,
            threads=case.threads,
            batch=case.batch,
            error=time_difference(by_candidate[first], by_candidate[second]),
        )
        for first, second in pairs
        for case, by_candidate in times.items()
        if first in by_candidate and second in by_candidate
    ]


def time_difference(first_ms: float, second_ms: float) -> float:
    """Return by which fraction the larger of two times exceeds the smaller one."""
    return max(first_ms, second_ms) / min(first_ms, second_ms) - 1


def largest_errors(errors: Sequence[MeasurementError]) -> dict[int, float]:
    """Return batch -> largest error; batches without a compared pair are left out."""
    largest: dict[int, float] = {}
    for row in errors:
        largest[row.batch] = max(row.error, largest.get(row.batch, 0.0))
    return dict(sorted(largest.items()))


def describe_errors(errors: Sequence[MeasurementError]) -> str:
    """Return a sentence on the largest error of each batch; empty without errors."""
    if not errors:
        return ""
    errors_by_batch = " and ".join(
        f"{error:.0%} {'for one image' if batch == 1 else f'in batches of {batch}'}"
        for batch, error in largest_errors(errors).items()
    )
    names = sorted({name for row in errors for name in row.candidates})
    return (
        f"measurement error: files with the same graph ({', '.join(names)}) differed by up to "
        f"{errors_by_batch}; no interval of a speed-up is narrower"
    )
