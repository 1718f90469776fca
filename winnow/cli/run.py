"""`winnow run` and `winnow status`: what is to be done, doing it, and the page of tables at the end."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table

from tasks.project import announced_servers, run_lock, run_summary, watchdog
from tasks.project.disk_errors import check_room
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import Times, read_memory
from tasks.registry import promotion_state
from tasks.versioning import dvc_stages, integrity
from winnow.cli import plan
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.records import read_record, this_machine
from winnow.reporting.wording import of_peak_told

console = Terminal()


def run(places: ProjectPaths, config: Config) -> int:
    """Do what is stale, track and promote; nothing at all when all is up to date."""
    started = time.monotonic()
    run_lock.check_free(places)
    fetch(places, config)
    stale = dvc_stages.stale(places.root, config)
    done: list[dict[str, Any]] = []
    began = time.time()
    if stale or _untracked(places, config):
        check_room(places.root)
        _announce(stale)
        _warn_of_overflow(places, config)
        announced_servers.check_prefect()
        announced_servers.report_to_prefect(places)
        watchdog.start(places)  # it asks Prefect with the same password
        # Only now: these imports cost four seconds.
        from flows.pipeline import pipeline
        from flows.runtime import leaving

        with leaving():
            done = pipeline(str(places.root))
    else:
        console.print("Nothing has changed: no step runs.")
    show_results(places, config)
    if done:
        _show_times(places, done, time.monotonic() - started, began)
    _show_where(places)
    return 0


def _warn_of_overflow(places: ProjectPaths, config: Config) -> None:
    from tasks.project import benchmark_target
    from winnow.selection.caveats import overflow_told, overflowing

    if unsafe := overflowing(config, benchmark_target.serving_flags(places, config)):
        console.print(f"Note: {overflow_told(unsafe)}")


def fetch(places: ProjectPaths, config: Config) -> None:
    """Bring data.path up to what lies in S3, where data.fetch says so, and say what came."""
    if config.data.fetch == "none":
        return
    from tasks.versioning import s3_fetch

    logging.basicConfig(format="%(message)s")
    logging.getLogger("tasks.versioning.s3_mirror").setLevel(logging.INFO)
    with run_lock.run_alone(places):
        s3_fetch.fetch(places, config)


def show_status(places: ProjectPaths, config: Config, full: bool = False) -> int:
    """A table of stale steps with the reasons, libraries that differ from those that ran, and what serves.

    While a run works DVC cannot be asked what is stale: who works is told, at which step, and how far it is. `full`:
    read every file that DVC keeps of this state, not only those whose size, time or inode have changed.
    """
    if told := run_lock.who_works(places):
        for line in (told, *_progress(places), *promotion_state.reasons(places)):
            console.print(line)
        return 0
    if full:
        integrity.damaged(places, full=True)  # what it finds stays in doubt, and is told as stale
    stale = dvc_stages.stale(places.root, config)
    if not stale:
        console.print("All steps are up to date.")
    else:
        table = Table("step", "why it has to run", box=None, header_style="bold", pad_edge=False)
        for stage, reasons in stale.items():
            more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
            table.add_row(stage.removeprefix(dvc_stages.CANDIDATE), "; ".join(reasons[:3]) + more)
        console.print(table)
    for line in (*version_drift(places), *run_summary.unchecked_lines(places), *promotion_state.reasons(places)):
        console.print(line)
    return 0


def _progress(places: ProjectPaths) -> list[str]:
    """The last row of the curves that were written last, where a step trains."""
    curves = sorted(places.checkpoints.glob("*/**/*.curves.jsonl"), key=lambda path: path.stat().st_mtime)
    if not curves:
        return []
    try:
        rows = curves[-1].read_text(encoding="utf-8").splitlines()
        row = TypeAdapter(dict[str, float]).validate_json(rows[-1]) if rows else {}
    except (OSError, UnicodeDecodeError, ValidationError):  # it is written anew with the next epoch
        return []
    if not row:
        return []
    shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
    return [f"{curves[-1].name.removesuffix('.curves.jsonl')}: {shown}"]


def version_drift(places: ProjectPaths) -> list[str]:
    """Libraries whose version differs from the one a step ran with; they make nothing stale."""
    now = this_machine().versions
    lines = []
    for path in sorted((places.state_dir / "versions").glob("*.json")):
        then: dict[str, str] = read_memory(path, dict[str, str], {})
        drift = [f"{name} {then[name]} -> {now.get(name, 'missing')}" for name in then if now.get(name) != then[name]]
        if drift:
            lines.append(f"{path.stem} ran with other versions: {', '.join(drift)}")
    return lines


def show_results(places: ProjectPaths, config: Config) -> None:
    """The table of candidates, what pretraining bought, the verdict."""
    rows = run_summary.candidate_rows(places)
    timed = read_record(places.artifacts / "benchmark")
    machine, peaks = timed.machine, timed.details["peaks"]
    assert machine is not None
    source = read_record(places.artifacts / "data").details["source"]
    title = f"Candidates on the validation split of {source}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(rows[0]):
        last = index == len(rows[0]) - 1
        heading = "\n".join(name.rsplit(" ", 1))
        table.add_column(heading, justify="left" if index == 0 or last else "right", no_wrap=not last)
    for row in rows:
        style = {"winner": "bold green", "passed": "green"}.get(row["verdict"].partition(" (")[0], "")
        of_peak = re.sub(r"(\d \w+) / ", r"\1 /\n", row[run_summary.OF_PEAK])  # two precisions: one below the other
        # Both batches one below the other, so that the verdict keeps its room.
        stacked = {name: row[name].replace(" / ", " /\n") for name in run_summary.SPEEDUPS}
        table.add_row(*{**row, **stacked, run_summary.OF_PEAK: of_peak}.values(), style=style)
    for warning in run_summary.first_warnings(places):
        console.print(f"Warning: {warning}.", style="bold yellow")
    Terminal(width=max(console.width, 190), soft_wrap=False).print(table)
    flags = " ".join(flag for flag in machine.flags if flag.startswith(("avx512_", "amx", "avx_")))
    console.print(
        f"Speed-ups are batch 1 / batch {config.benchmark.large_batch}, the file's best runtime against dense. "
        f"{of_peak_told(peaks)}. "
        f"Measured on {machine.cpu}, {machine.threads} threads, {flags or 'neither VNNI nor bf16'}."
    )
    for line in (
        *run_summary.learned_lines(places),
        *run_summary.reason_lines(places),
        *run_summary.promotion_lines(places),
    ):
        console.print(f"- {line}")


def _announce(stale: dict[str, list[str]]) -> None:
    names = [stage.removeprefix(dvc_stages.CANDIDATE) for stage in stale]
    console.print(f"To do: {', '.join(names) or 'tracking and promotion'}")


def _untracked(places: ProjectPaths, config: Config) -> bool:
    """Whether MLflow or the registry lacks something; answered from files, without asking a server."""
    from tasks.tracking import mlflow_runs

    return not (mlflow_runs.is_complete(places, config) and promotion_state.is_settled(places, config))


def _show_times(places: ProjectPaths, done: list[dict[str, Any]], total: float, since: float) -> None:
    """Where the time went, beside what was planned where somebody asked."""
    true = _measured(places, done, since)
    planned, nearness = plan.beside(places, true)
    title = {"title": "Where the time went", "title_justify": "left", "box": box.SIMPLE_HEAD, "pad_edge": False}
    table = Table("step", "outcome", "seconds", "the step itself", "memory, GB", **title)  # type: ignore[arg-type]
    if planned:
        table.add_column("planned, s")
        table.add_column("planned, GB")
    accounted = 0.0
    for row in done:
        if row["seconds"] >= 0.05:
            own = f"{row['own']:.1f}" if row.get("own") else ""
            memory = f"{true[row['stage']]['memory_mb'] / 1e3:.2f}" if row["stage"] in true else ""
            cells = [row["stage"], row["outcome"], f"{row['seconds']:.1f}", own, memory]
            if forecast := planned.get(row["stage"]):
                cells += [f"{forecast['seconds']:.1f}", f"{forecast['memory_mb'] / 1e3:.2f}"]
            table.add_row(*cells)
            accounted += row["seconds"]
    table.add_row("flow, tracking and servers", "", f"{total - accounted:.1f}")
    table.add_row("total", "", f"{total:.1f}", style="bold")
    console.print(table)
    if nearness:
        console.print(nearness)


def _measured(places: ProjectPaths, done: list[dict[str, Any]], since: float) -> dict[str, dict[str, float]]:
    """Step -> {seconds, memory_mb, disk_mb} of those that ran."""
    found: dict[str, dict[str, float]] = {}
    for row in done:
        path = places.state_dir / "times" / f"{row['stage']}.json"
        is_new = row["outcome"] == "ran" and path.is_file() and path.stat().st_mtime >= since
        if is_new and (times := read_memory(path, Times | None, None)):
            found[row["stage"]] = {
                "seconds": row["seconds"],
                "memory_mb": times["memory_mb"],
                "disk_mb": times["disk_mb"],
            }
    return found


def _show_where(places: ProjectPaths) -> None:
    page = announced_servers.mlflow_page(places)
    console.print(
        f"Report: {places.artifacts.relative_to(places.root) / 'report' / 'report.html'}\n"
        + (f"MLflow: {page}" if page else "MLflow and Prefect in the browser: make ui")
    )
