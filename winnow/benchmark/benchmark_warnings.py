"""Warnings of the benchmark: files that were not timed, PyTorch that did not compile, and imprecise times."""

from __future__ import annotations

from collections.abc import Mapping

from winnow.benchmark.grid import BenchmarkResult
from winnow.deploy.runtime_properties import PYTORCH_RUNTIMES
from winnow.records.benchmark import BestRows

MAX_STEADY_SPREAD = 0.2
"""Inner spread of a file's fastest rows beyond which a warning calls its times imprecise."""


def benchmark_warnings(outcome: BenchmarkResult, best_rows: Mapping[str, BestRows]) -> tuple[str, ...]:
    """Return warnings of files that could not be timed, PyTorch that did not compile, and imprecise times."""
    refused = sorted({(row.candidate, row.runtime, row.precision) for row in outcome.refused})
    warnings = [
        f"{name} on {runtime} {precision} was not timed: its predictions differ from those of the file "
        "(see details.refused)"
        for name, runtime, precision in refused
    ]
    not_compiled = [row for row in outcome.absent if row.runtime in PYTORCH_RUNTIMES]
    if not_compiled:
        reasons = "; ".join(dict.fromkeys(row.reason for row in not_compiled))
        cases = ", ".join(dict.fromkeys(f"{row.runtime} {row.precision}" for row in not_compiled))
        warnings.append(
            f"compiled PyTorch did not run here ({cases}: {reasons}), so the best float PyTorch is that of the other "
            "cases, and speed-ups over it may be too high; once it can run: dvc repro --force --single-item benchmark, "
            "then winnow run"
        )
    timed = {name: [row for row in (rows.latency, rows.throughput) if row] for name, rows in best_rows.items()}
    spreads = {name: max(row.inner_spread for row in rows) for name, rows in timed.items() if rows}
    if noisy := [name for name, spread in spreads.items() if spread > MAX_STEADY_SPREAD]:
        warnings.append(
            f"times of {', '.join(noisy)} varied by up to {max(spreads.values()):.0%} from round to round, the fastest "
            "and the slowest left out: other programs may have been running. Comparisons with them are imprecise; to "
            "time again: dvc repro --force --single-item benchmark, then winnow run"
        )
    return tuple(warnings)
