"""Compare each case of a run's benchmark, timed among the others as the benchmark does, with the same case timed alone.

    python -m benchmarks.cases_alone [PROJECT]

PROJECT is a folder in which `winnow run` has finished (default: this one). All cases of one batch and number of threads
are open in this process. Each is visited here as the benchmark visits it, then timed in a new process that opens
nothing else, after 2 s of untimed calls, then visited here once more. The ratio among the others / alone is 1 if cases
do not disturb each other. The three timings follow one another, because a virtual machine may change its speed from one
minute to the next; the ratio of the reported time, of another hour, to the time alone is listed apart. The table also
lists the measurement error of files with identical graphs, whose true ratio is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import ROOT, markdown_table, write_results
from winnow.benchmark.grid import calls_per_round
from winnow.benchmark.measurement_error import describe_errors
from winnow.benchmark.timing import time_calls
from winnow.config import Benchmark
from winnow.config.section import NO_FILE
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.records import BenchmarkRecord
from winnow.records.benchmark import BenchmarkCase
from winnow.timing_lock import timing_lock

NAME = "cases_alone"
WARM_UP_MS, CALLS_SINGLE, CALLS_LARGE = 2000.0, 400, 40
RATIO_TOLERANCE = 0.15
"""Cases whose ratio differs from 1 by more are listed."""


def time_in_new_process(candidates: Path, case: BenchmarkCase, side: int) -> float:
    """Return the median latency of a case in ms, timed in a new process. Raises CalledProcessError if that fails."""
    case_json = json.dumps(asdict(case))
    command = [sys.executable, "-m", "benchmarks.cases_alone", "--case", case_json, "--side", str(side)]
    process = subprocess.run([*command, str(candidates)], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(process.stdout.strip().splitlines()[-1])


def random_pixels(batch: int, side: int) -> NDArray[np.uint8]:
    """Return random images (B, S, S, 3)."""
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def time_case(candidates: Path, case: BenchmarkCase, side: int) -> float:
    """Return the median latency of a case in ms, timed in this process on random images of `side` pixels."""
    set_torch_threads(case.threads)
    predict = open_case(candidates / case.candidate, case)
    calls = CALLS_SINGLE if case.batch == 1 else CALLS_LARGE
    return statistics.median(time_calls(partial(predict, random_pixels(case.batch, side)), calls, WARM_UP_MS)) * 1e3


def visit(call: Callable[[], object], batch: int, settings: Benchmark) -> float:
    """Return the median latency of a call in ms, timed in this process as in one round of the benchmark."""
    calls = calls_per_round(batch, settings)
    return statistics.median(time_calls(call, calls, settings.warm_up_ms, settings.timed_ms)) * 1e3


def time_rows(benchmark: BenchmarkRecord, candidates: Path) -> list[dict[str, Any]]:
    """Return each row's case with p50_ms (reported), among_ms, alone_ms, and the ratios of the others to the last."""
    settings = Benchmark.model_validate({**benchmark.parameters, "target": NO_FILE})
    rows, side, timed_rows = benchmark.details.rows, benchmark.details.conditions.image_size, []
    for (batch, threads), group in groupby(rows, lambda row: (row.batch, row.threads)):
        set_torch_threads(threads)
        opened = [(row, open_case(candidates / row.candidate, row.case)) for row in group]
        pixels_NHWC = random_pixels(batch, side)
        for row, predict in opened:
            call = partial(predict, pixels_NHWC)
            with timing_lock():
                before_ms, alone_ms = visit(call, batch, settings), time_in_new_process(candidates, row.case, side)
                among_ms = (before_ms + visit(call, batch, settings)) / 2
            ratios = {"ratio": among_ms / alone_ms, "reported_ratio": row.p50_ms / alone_ms}
            times = {"p50_ms": row.p50_ms, "among_ms": among_ms, "alone_ms": alone_ms}
            benchmark_pass = "screened" if row.screened else "compared"
            timed_rows.append({**asdict(row.case), **times, "pass": benchmark_pass, **ratios})
            print(f"{len(timed_rows)} of {len(rows)}: {timed_rows[-1]}", flush=True)
    return timed_rows


def summarize(rows: list[dict[str, Any]], key: str) -> dict[str, str | int]:
    """Return the median and the extremes of the ratios under `key`."""
    ratios = [row[key] for row in rows]
    return {
        "cases": len(ratios),
        "median": f"{statistics.median(ratios):.3f}",
        "minimum": f"{min(ratios):.2f}",
        "maximum": f"{max(ratios):.2f}",
        "within 15 %": sum(abs(ratio - 1) <= RATIO_TOLERANCE for ratio in ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(time_case(args.project, BenchmarkCase(**json.loads(args.case)), args.side))
        return
    artifacts = args.project.resolve() / "artifacts"
    benchmark = BenchmarkRecord.read(artifacts / "benchmark")
    rows = time_rows(benchmark, artifacts / "candidates")
    groups = {name: [row for row in rows if row["pass"] == name] for name in ("compared", "screened")}
    table = markdown_table(
        [
            {"pass": name, "timed": timed, **summarize(group, key)}
            for timed, key in (("among the others", "ratio"), ("as reported", "reported_ratio"))
            for name, group in {"all": rows, **groups}.items()
            if group
        ]
    )
    outliers = [row for row in rows if abs(row["ratio"] - 1) > RATIO_TOLERANCE]
    if outliers:
        outliers.sort(key=lambda row: -abs(row["ratio"] - 1))
        keys = ("candidate", "runtime", "precision", "batch", "threads", "pass")
        listed = [{**{key: row[key] for key in keys}, "among / alone": f"{row['ratio']:.2f}"} for row in outliers]
        table += f"\n\nMore than 15 % from 1:\n\n{markdown_table(listed)}"
    table += f"\n\n{describe_errors(benchmark.details.measurement_error) or 'no identical graphs in this tree'}."
    conditions = (
        "Median time of a case among the others of its batch and threads, or as the run reported it, divided by its "
        "median time alone in a new process after 2 s of untimed calls; every case of one run of the sample, batches "
        f"of 1 and {benchmark.parameters['large_batch']}, {benchmark.parameters['rounds']} rounds."
    )
    errors = [error.model_dump(mode="json") for error in benchmark.details.measurement_error]
    write_results(NAME, conditions, {"rows": rows, "measurement_error": errors}, table)


if __name__ == "__main__":
    main()
