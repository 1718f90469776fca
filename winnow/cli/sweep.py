"""`winnow sweep`: measure batch, threads and runtime of one file, as a table, a CSV and a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.table import Table

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths
from winnow.benchmark.grid import BenchmarkResult
from winnow.benchmark.sweep import BATCHES, best_sweep_row, sweep
from winnow.cli.candidate_lookup import candidate_folder
from winnow.cli.progress import show_log
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.data.dataset import load_images
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.records import RECORD, CandidateRecord, SelectionRecord, this_machine, write_json
from winnow.records.benchmark import BenchmarkRow

COLUMNS = ("runtime", "precision", "batch", "threads", "p50_ms", "p95_ms", "images_per_s", "spread", "samples")
console = Terminal()


def run_sweep(paths: ProjectPaths, config: Config, name: str, batches: tuple[int, ...]) -> int:
    """Time candidate `name` ("" for the winner), print the results and write them to files."""
    show_log()
    with run_lock.lock_run(paths):
        name = name or _winner(paths)
        folder = candidate_folder(paths, name, MODEL)
        precision = CandidateRecord.read(folder).details.precision
        images = load_images(paths.artifacts / "data")
        outcome = sweep(name, folder, precision, images, batches or BATCHES, config.benchmark)
    out = paths.state_dir / "sweep" / name
    _write_files(out, outcome, name)
    _print(outcome, name)
    console.print(f"In {out.relative_to(paths.root)}: sweep.csv, sweep.json, sweep.png")
    return 0


def _winner(paths: ProjectPaths) -> str:
    verdict = paths.artifacts / "select"
    winner = SelectionRecord.read(verdict).details.winner if (verdict / RECORD).is_file() else None
    if not winner:
        raise ConfigError("no candidate has won; name one: winnow sweep NAME")
    return winner


def _write_files(out: Path, outcome: BenchmarkResult, name: str) -> None:
    """Write sweep.csv, sweep.png, and sweep.json, which also holds the machine and the versions."""
    from winnow.reporting.exploration_plots import plot_sweep

    machine, rows = this_machine(), outcome.rows
    out.mkdir(parents=True, exist_ok=True)
    content = {
        kind: [row.model_dump(mode="json") for row in getattr(outcome, kind)] for kind in ("rows", "refused", "absent")
    }
    write_json(out / "sweep.json", {"machine": machine.model_dump(mode="json"), **content})
    with (out / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row.model_dump() for row in rows)
    (out / "sweep.png").write_bytes(plot_sweep(rows, f"{name} on {machine.cpu}, {machine.threads} threads"))


def _print(outcome: BenchmarkResult, name: str) -> None:
    """Print images per second by batch, one row for each runtime, precision and number of threads."""
    rows = outcome.rows
    batches = sorted({row.batch for row in rows})
    console.print(f"{name}, images/s by batch:")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("runtime", "precision", "threads"):
        table.add_column(heading)
    for batch in batches:
        table.add_column(str(batch), justify="right")
    for kind in dict.fromkeys((row.runtime, row.precision, row.threads) for row in rows):
        row_of = {row.batch: row for row in rows if (row.runtime, row.precision, row.threads) == kind}
        rates = [f"{row_of[batch].images_per_s:,.0f}" if batch in row_of else "" for batch in batches]
        table.add_row(*map(str, kind), *rates)
    console.print(table)
    for title, key in (("Shortest call", "latency"), ("Most images", "throughput")):
        if (row := best_sweep_row(rows, key)) is not None:
            console.print(f"{title}: {_describe_row(row)}")


def _describe_row(row: BenchmarkRow) -> str:
    rate = f"{row.p50_ms:.3g} ms, {row.images_per_s:,.0f} images/s"
    return f"{row.runtime} {row.precision}, batch {row.batch}, {row.threads} threads: {rate}"
