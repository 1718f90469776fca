"""Compare each time reported by a run's benchmark with the same case timed alone in a new process.

    python -m benchmarks.cases_alone [PROJECT]

PROJECT is a folder in which `winnow run` has finished (default: this one). Each case is opened in a new process that
opens nothing else, called for 2 s without timing, then timed. The ratio reported / alone is 1 if cases do not disturb
each other. The table also lists the measurement error of files with identical graphs, whose true ratio is 1. Times
depend on the state of the machine: run this on an idle machine, right after the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import ROOT, markdown_table, write_results
from winnow.benchmark.measurement_error import describe_errors
from winnow.benchmark.timing import time_calls
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.records import BenchmarkRecord
from winnow.records.benchmark import BenchmarkCase, BenchmarkRow
from winnow.timing_lock import timing_lock

NAME = "cases_alone"
WARM_UP_MS, CALLS_SINGLE, CALLS_LARGE = 2000.0, 400, 40
RATIO_TOLERANCE = 0.15
"""Cases whose ratio differs from 1 by more are listed."""


def time_in_new_process(candidates: Path, case: BenchmarkCase, side: int) -> float:
    """Return the median latency of a case in ms, timed in a new process. Raises CalledProcessError if that fails."""
    case_json = json.dumps(asdict(case))
    command = [sys.executable, "-m", "benchmarks.cases_alone", "--case", case_json, "--side", str(side)]
    with timing_lock():
        process = subprocess.run([*command, str(candidates)], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(process.stdout.strip().splitlines()[-1])


def time_case(candidates: Path, case: BenchmarkCase, side: int) -> float:
    """Return the median latency of a case in ms, timed in this process on random images of `side` pixels."""
    set_torch_threads(case.threads)
    predict = open_case(candidates / case.candidate, case)
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (case.batch, side, side, 3), np.uint8)
    calls = CALLS_SINGLE if case.batch == 1 else CALLS_LARGE
    return statistics.median(time_calls(partial(predict, pixels_NHWC), calls, WARM_UP_MS)) * 1e3


def time_rows(rows: list[BenchmarkRow], candidates: Path, side: int) -> list[dict[str, Any]]:
    """Return each row's case with p50_ms (reported), alone_ms (timed in a new process) and their ratio."""
    timed_rows = []
    for index, row in enumerate(rows):
        alone_ms = time_in_new_process(candidates, row.case, side)
        reported = {**asdict(row.case), "p50_ms": row.p50_ms}
        ratio = row.p50_ms / alone_ms
        benchmark_pass = "screened" if row.screened else "compared"
        timed_rows.append({**reported, "pass": benchmark_pass, "alone_ms": alone_ms, "ratio": ratio})
        print(f"{index + 1} of {len(rows)}: {reported} alone {alone_ms:.4g} ms, ratio {ratio:.3f}", flush=True)
    return timed_rows


def summarize(rows: list[dict[str, Any]]) -> dict[str, str | int]:
    """Return the median and the extremes of the ratios."""
    ratios = [row["ratio"] for row in rows]
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
    side = benchmark.details.conditions.image_size
    rows = time_rows(benchmark.details.rows, artifacts / "candidates", side)
    groups = {name: [row for row in rows if row["pass"] == name] for name in ("compared", "screened")}
    nonempty = {"all": rows, **{name: group for name, group in groups.items() if group}}
    table = markdown_table([{"pass": name, **summarize(group)} for name, group in nonempty.items()])
    outliers = [row for row in rows if abs(row["ratio"] - 1) > RATIO_TOLERANCE]
    if outliers:
        outliers.sort(key=lambda row: -abs(row["ratio"] - 1))
        keys = ("candidate", "runtime", "precision", "batch", "threads", "pass")
        listed = [{**{key: row[key] for key in keys}, "reported / alone": f"{row['ratio']:.2f}"} for row in outliers]
        table += f"\n\nMore than 15 % from 1:\n\n{markdown_table(listed)}"
    table += f"\n\n{describe_errors(benchmark.details.measurement_error) or 'no identical graphs in this tree'}."
    conditions = (
        "Reported p50 divided by the p50 of the case alone in a new process, after 2 s of untimed calls; every case of "
        f"one run of the sample, batches of 1 and {benchmark.parameters['large_batch']}, "
        f"{benchmark.parameters['rounds']} rounds."
    )
    errors = [error.model_dump(mode="json") for error in benchmark.details.measurement_error]
    write_results(NAME, conditions, {"rows": rows, "measurement_error": errors}, table)


if __name__ == "__main__":
    main()
