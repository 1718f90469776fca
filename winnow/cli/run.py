"""`winnow run` and `winnow status`: run what is stale, and print tables of the results."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table

from tasks import stage_processes
from tasks.project import run_lock, run_summary, running_servers, watchdog
from tasks.project.disk_errors import check_free_space
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import STEP_TIMES, STEP_VERSIONS
from tasks.registry import promotion_state, registered_weights
from tasks.versioning import dvc_stages, integrity, s3_mirror
from winnow.cli import plan
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.records import BenchmarkRecord, IngestRecord, this_machine

if TYPE_CHECKING:
    from tasks.stage_runner import StageResult

console = Terminal()
TABLE_WIDTH = 100
"""The width that the closing table needs, in characters; a narrower terminal wraps its lines."""
NAME_WIDTH = 16
"""Characters of a name or verdict that stay in one line."""


def run_stale(paths: ProjectPaths, config: Config) -> int:
    """Run what is stale, track and promote; do nothing if all is up to date."""
    started = time.monotonic()
    run_lock.check_unlocked(paths)
    fetch_inputs(paths, config)
    stale = dvc_stages.stale_stages(paths.root, config)
    done: Sequence[StageResult] = []
    wall_start = time.time()
    if stale or _needs_tracking(paths, config):
        check_free_space(paths.root)
        names = [stage.removeprefix(dvc_stages.CANDIDATE_PREFIX) for stage in stale]
        console.print(f"To do: {', '.join(names) or 'tracking and promotion'}")
        _warn_of_overflow(paths, config)
        running_servers.check_prefect()
        running_servers.report_to_prefect(paths)
        watchdog.start(paths)  # it reads Prefect with the same password
        with stage_processes.preloaded(paths.root, is_needed=bool(stale)):
            # Imported here because it takes four seconds.
            from flows.pipeline import pipeline
            from flows.runtime import exit_on_stop

            with exit_on_stop(), running_servers.temporary_server_errors():
                done = pipeline(str(paths.root))
    else:
        console.print("Nothing has changed: no step runs.")
    show_results(paths, config)
    if done:
        _show_times(paths, done, time.monotonic() - started, wall_start)
    _show_locations(paths)
    return 0


def _warn_of_overflow(paths: ProjectPaths, config: Config) -> None:
    from tasks.project import benchmark_target
    from winnow.selection.selection_warnings import describe_overflow, overflowing_candidates

    if unsafe := overflowing_candidates(config, benchmark_target.serving_flags(paths, config)):
        console.print(f"Note: {describe_overflow(unsafe)}")


def fetch_inputs(paths: ProjectPaths, config: Config) -> bool:
    """Synchronise data.path with S3, and weights with MLflow's registry; print what changed.

    Returns False where params.yaml names neither.
    """
    weights = registered_weights.registered_names(config)
    if config.data.fetch == "none" and not weights:
        return False
    logging.basicConfig(format="%(message)s")
    for name in (s3_mirror.__name__, registered_weights.__name__):
        logging.getLogger(name).setLevel(logging.INFO)
    with run_lock.lock_run(paths):
        s3_mirror.fetch(paths, config)
        registered_weights.fetch_weights(paths, config)
    return True


def show_status(paths: ProjectPaths, config: Config, full: bool = False) -> int:
    """Print stale steps with the reasons, libraries that differ from those that ran, and what is in production.

    During a run DVC cannot list stale steps: then the running process, its step and its progress are printed.
    `full`: read every file that DVC keeps of this state, not only those whose size, time or inode have changed.
    """
    if working := run_lock.describe_current_run(paths):
        for line in (working, *_training_progress(paths), *promotion_state.read_reasons(paths)):
            console.print(line)
        return 0
    if full:
        integrity.find_damaged(paths, full=True)  # damaged files are marked, and appear as stale below
    stale = dvc_stages.stale_stages(paths.root, config)
    if not stale:
        console.print("All steps are up to date.")
    else:
        table = Table("step", "why it has to run", box=None, header_style="bold", pad_edge=False)
        for stage, reasons in stale.items():
            more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
            table.add_row(stage.removeprefix(dvc_stages.CANDIDATE_PREFIX), "; ".join(reasons[:3]) + more)
        console.print(table)
    for line in (*version_changes(paths), *run_summary.unchecked_lines(paths), *promotion_state.read_reasons(paths)):
        console.print(line)
    return 0


def _training_progress(paths: ProjectPaths) -> list[str]:
    """Return the last row of the most recent training curves, while a step trains."""
    curves = sorted(paths.checkpoints.glob("*/**/*.curves.jsonl"), key=lambda path: path.stat().st_mtime)
    if not curves:
        return []
    try:
        rows = curves[-1].read_text(encoding="utf-8").splitlines()
        row = TypeAdapter(dict[str, float]).validate_json(rows[-1]) if rows else {}
    except (OSError, UnicodeDecodeError, ValidationError):  # the next epoch rewrites it
        return []
    if not row:
        return []
    shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
    return [f"{curves[-1].name.removesuffix('.curves.jsonl')}: {shown}"]


def version_changes(paths: ProjectPaths) -> list[str]:
    """Return the libraries whose version differs from the one that a step ran with; they make nothing stale."""
    installed = this_machine().versions
    lines = []
    for path in sorted(STEP_VERSIONS.path(paths).parent.glob("*.json")):
        recorded = STEP_VERSIONS.read(paths, path.stem)
        drift = [
            f"{name} {recorded[name]} -> {installed.get(name, 'missing')}"
            for name in recorded
            if installed.get(name) != recorded[name]
        ]
        if drift:
            lines.append(f"{path.stem} ran with other versions: {', '.join(drift)}")
    return lines


def show_results(paths: ProjectPaths, config: Config) -> None:
    """Print the table of candidates, the gain by pretraining, and the decision."""
    rows = run_summary.closing_table(paths, config.promotion.objective)
    machine = BenchmarkRecord.read(paths.artifacts / "benchmark").machine
    assert machine is not None
    source = IngestRecord.read(paths.artifacts / "data").details.source
    title = f"Candidates on {source}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(rows[0]):
        is_text = index in (0, len(rows[0]) - 1)
        width = min(NAME_WIDTH, max(len(row[name]) for row in rows)) if is_text else None
        heading = "\n".join(name.rsplit(" ", 1))
        options = {"no_wrap": not is_text, "min_width": width, "overflow": "fold"}
        table.add_column(heading, justify="left" if is_text else "right", **options)  # type: ignore[arg-type]
    for row in rows:
        style = {"winner": "bold green", "passed": "green"}.get(row["verdict"].partition(" (")[0], "")
        table.add_row(*row.values(), style=style)
    for warning in run_summary.report_warnings(paths):
        console.print(f"Warning: {warning}.", style="bold yellow")
    Terminal(width=max(console.width, TABLE_WIDTH), soft_wrap=False).print(table)
    flags = " ".join(flag for flag in machine.flags if flag.startswith(("avx512_", "amx", "avx_")))
    console.print(
        "Accuracy is top-1 on the validation split, ± half of its 95 % interval. Speed is that of each file in its "
        "fastest runtime, against dense in PyTorch eager and against dense in its fastest float precision and runtime, "
        f"with a 95 % interval. Measured on {machine.cpu}, {machine.threads} threads, "
        f"{flags or 'neither VNNI nor bf16'}. The report has all figures."
    )
    for line in (
        *run_summary.training_lines(paths),
        *run_summary.failure_lines(paths),
        *run_summary.promotion_lines(paths),
    ):
        console.print(f"- {line}")


def _needs_tracking(paths: ProjectPaths, config: Config) -> bool:
    """Return whether MLflow or the registry lacks something, from files alone, without asking a server."""
    from tasks.tracking import tracked_runs

    return not (tracked_runs.is_complete(paths, config) and promotion_state.is_up_to_date(paths, config))


def _show_times(paths: ProjectPaths, done: Sequence[StageResult], total: float, since: float) -> None:
    """Print the time of each step, beside the plan where there is one."""
    measured = _measured_costs(paths, done, since)
    planned, nearness = plan.compare_with_plan(paths, measured)
    title = {"title": "Time of each step", "title_justify": "left", "box": box.SIMPLE_HEAD, "pad_edge": False}
    table = Table("step", "outcome", "seconds", "the step itself", "memory, GB", **title)  # type: ignore[arg-type]
    if planned:
        table.add_column("planned, s")
        table.add_column("planned, GB")
    accounted = 0.0
    for row in done:
        if row["seconds"] >= 0.05:
            step_seconds = f"{row['own']:.1f}" if row["own"] else ""
            memory = f"{measured[row['stage']]['memory_mb'] / 1e3:.2f}" if row["stage"] in measured else ""
            cells = [row["stage"], row["outcome"], f"{row['seconds']:.1f}", step_seconds, memory]
            if forecast := planned.get(row["stage"]):
                cells += [f"{forecast['seconds']:.1f}", f"{forecast['memory_mb'] / 1e3:.2f}"]
            table.add_row(*cells)
            accounted += row["seconds"]
    table.add_row("flow, tracking and servers", "", f"{total - accounted:.1f}")
    table.add_row("total", "", f"{total:.1f}", style="bold")
    console.print(table)
    if nearness:
        console.print(nearness)


def _measured_costs(paths: ProjectPaths, done: Sequence[StageResult], since: float) -> dict[str, dict[str, float]]:
    """Return step -> {seconds, memory_mb, disk_mb} of those that ran."""
    costs: dict[str, dict[str, float]] = {}
    for row in done:
        path = STEP_TIMES.path(paths, row["stage"])
        is_new = row["outcome"] == "ran" and path.is_file() and path.stat().st_mtime >= since
        if is_new and (times := STEP_TIMES.read(paths, row["stage"])):
            costs[row["stage"]] = {
                "seconds": row["seconds"],
                "memory_mb": times["memory_mb"],
                "disk_mb": times["disk_mb"],
            }
    return costs


def _show_locations(paths: ProjectPaths) -> None:
    page = running_servers.mlflow_url(paths)
    console.print(
        f"Report: {paths.artifacts.relative_to(paths.root) / 'report' / 'report.html'}\n"
        + (f"MLflow: {page}" if page else "MLflow and Prefect in the browser: make ui")
    )
