"""Does a cell's time in the benchmark equal that of the cell alone? Every cell of a run, timed again by itself.

    python -m benchmarks.cells_alone [PROJECT]

PROJECT is a folder in which `winnow run` has ended; this one unless said otherwise. Each cell is opened in a fresh
process that opens nothing else, called for 2 s untimed, then timed. Reported / alone is 1 where cells do not disturb
each other. Files with identical graphs, whose true ratio is 1, stand beside it. All of it is of the machine's state:
run it where nothing else works, right after the run.
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

from benchmarks.chain import ROOT, leave, markdown
from winnow.benchmark.measurement_error import describe_errors
from winnow.benchmark.timing import time_calls
from winnow.deploy.inference_runtimes import open_case, set_torch_threads
from winnow.records import BenchmarkRecord
from winnow.records.benchmark import BenchmarkCase, BenchmarkRow
from winnow.timing_lock import timing_lock

NAME = "cells_alone"
WARM_UP_MS, CALLS_SINGLE, CALLS_LARGE = 2000.0, 400, 40
NOTICEABLE = 0.15
"""Distance from 1 from which a cell is listed."""


def alone_ms(candidates: Path, row: BenchmarkRow, side: int) -> float:
    """Return the p50 in ms of a row's cell in a process of its own. Raises CalledProcessError where that fails."""
    cell = json.dumps(asdict(row.case))
    command = [sys.executable, "-m", "benchmarks.cells_alone", "--cell", cell, "--side", str(side), str(candidates)]
    with timing_lock():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def one_cell(candidates: Path, cell: BenchmarkCase, side: int) -> float:
    """The p50 in ms of this cell, in this process."""
    set_torch_threads(cell.threads)
    predict = open_case(candidates / cell.candidate, cell)
    pixels_NHWC = np.random.default_rng(0).integers(0, 256, (cell.batch, side, side, 3), np.uint8)
    calls = CALLS_SINGLE if cell.batch == 1 else CALLS_LARGE
    return statistics.median(time_calls(partial(predict, pixels_NHWC), calls, WARM_UP_MS)) * 1e3


def compared(rows: list[BenchmarkRow], candidates: Path, side: int) -> list[dict[str, Any]]:
    """Each row with `alone_ms` and `ratio`, what was reported over what the cell takes alone."""
    found = []
    for at, row in enumerate(rows):
        alone = alone_ms(candidates, row, side)
        kept = {**asdict(row.case), "p50_ms": row.p50_ms}
        found.append({**kept, "pass": "screened" if row.screened else "compared", "alone_ms": alone})
        found[-1]["ratio"] = row.p50_ms / alone
        print(f"{at + 1} of {len(rows)}: {kept} alone {alone:.4g} ms, ratio {found[-1]['ratio']:.3f}", flush=True)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, str | int]:
    """Median and extremes of the ratios."""
    ratios = [row["ratio"] for row in rows]
    return {
        "cells": len(ratios),
        "median": f"{statistics.median(ratios):.3f}",
        "least": f"{min(ratios):.2f}",
        "most": f"{max(ratios):.2f}",
        "within 15 %": sum(abs(ratio - 1) <= NOTICEABLE for ratio in ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(one_cell(given.project, BenchmarkCase(**json.loads(given.cell)), given.side))
        return
    artifacts = given.project.resolve() / "artifacts"
    timed = BenchmarkRecord.read(artifacts / "benchmark")
    side = timed.details.conditions.image_size
    rows = compared(timed.details.rows, artifacts / "candidates", side)
    groups = {kind: [row for row in rows if row["pass"] == kind] for kind in ("compared", "screened")}
    shown = {"all": rows, **{kind: found for kind, found in groups.items() if found}}
    table = markdown([{"which": kind, **summary(found)} for kind, found in shown.items()])
    far = sorted((row for row in rows if abs(row["ratio"] - 1) > NOTICEABLE), key=lambda row: -abs(row["ratio"] - 1))
    if far:
        keys = ("candidate", "runtime", "precision", "batch", "threads", "pass")
        figures = [{**{key: row[key] for key in keys}, "reported / alone": f"{row['ratio']:.2f}"} for row in far]
        table += f"\n\nFurther than 15 % from 1:\n\n{markdown(figures)}"
    table += f"\n\n{describe_errors(timed.details.measurement_error) or 'no identical graphs in this tree'}."
    conditions = (
        "Reported p50 over that of the cell alone in a fresh process, after 2 s of untimed calls; every cell of one "
        f"run of the sample, batches of 1 and {timed.parameters['large_batch']}, {timed.parameters['rounds']} rounds."
    )
    errors = [error.model_dump(mode="json") for error in timed.details.measurement_error]
    leave(NAME, conditions, {"rows": rows, "measurement_error": errors}, table)


if __name__ == "__main__":
    main()
