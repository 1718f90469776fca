"""`winnow sweep`: batch, threads and runtime of one file, all measured: a table, a CSV and a picture."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths
from winnow.benchmark.grid import BenchmarkResult
from winnow.benchmark.sweep import BATCHES, fastest_of, sweep
from winnow.cli.candidate_lookup import folder_of
from winnow.cli.progress import tell_progress
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.data.dataset import load_images
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.records import RECORD, read_record, this_machine, write_json

COLUMNS = ("runtime", "precision", "batch", "threads", "p50_ms", "p95_ms", "images_per_s", "spread", "samples")
console = Terminal()


def show(places: ProjectPaths, config: Config, name: str, batches: tuple[int, ...]) -> int:
    """Time candidate `name` ("" for the winner), print and keep what came of it."""
    tell_progress()
    with run_lock.run_alone(places):
        name = name or _winner(places)
        folder = folder_of(places, name, MODEL)
        precision = read_record(folder).details["precision"]
        images = load_images(places.artifacts / "data")
        outcome = sweep(name, folder, precision, images, batches or BATCHES, config.benchmark)
    out = places.state_dir / "sweep" / name
    _leave(out, outcome, name)
    _print(outcome, name)
    console.print(f"In {out.relative_to(places.root)}: sweep.csv, sweep.json, sweep.png")
    return 0


def _winner(places: ProjectPaths) -> str:
    verdict = places.artifacts / "select"
    winner = read_record(verdict).details.get("winner") if (verdict / RECORD).is_file() else None
    if not winner:
        raise ConfigError("no candidate has won; name one: winnow sweep NAME")
    return str(winner)


def _leave(out: Path, outcome: BenchmarkResult, name: str) -> None:
    """sweep.csv, sweep.png, and sweep.json, which holds the machine and the versions too."""
    from winnow.reporting.exploration_plots import swept

    machine, rows = this_machine(), outcome.rows
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", {"machine": machine.model_dump(mode="json"), **asdict(outcome)})
    with (out / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (out / "sweep.png").write_bytes(swept(rows, f"{name} on {machine.cpu}, {machine.threads} threads"))


def _print(outcome: BenchmarkResult, name: str) -> None:
    """Images a second by batch, a line for each runtime, precision and number of threads."""
    rows = outcome.rows
    batches = sorted({row["batch"] for row in rows})
    console.print(f"{name}, images/s by batch:")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("runtime", "precision", "threads"):
        table.add_column(heading)
    for batch in batches:
        table.add_column(str(batch), justify="right")
    for kind in dict.fromkeys((row["runtime"], row["precision"], row["threads"]) for row in rows):
        own = {row["batch"]: row for row in rows if (row["runtime"], row["precision"], row["threads"]) == kind}
        rates = [f"{own[batch]['images_per_s']:,.0f}" if batch in own else "" for batch in batches]
        table.add_row(*map(str, kind), *rates)
    console.print(table)
    for what, key in (("Shortest call", "latency"), ("Most images", "throughput")):
        if (row := fastest_of(rows, key)) is not None:
            console.print(f"{what}: {_told(row)}")


def _told(row: dict[str, Any]) -> str:
    rate = f"{row['p50_ms']:.3g} ms, {row['images_per_s']:,.0f} images/s"
    return f"{row['runtime']} {row['precision']}, batch {row['batch']}, {row['threads']} threads: {rate}"
