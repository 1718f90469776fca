"""The results of a search: the verdict in words, and the files and tables that show it and the front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from winnow.cli.terminal import Terminal
from winnow.config import CONTROL, ROOT, Config, Search
from winnow.errors import ArtifactError
from winnow.eta import format_duration
from winnow.records import SelectionRecord, write_json
from winnow.records.benchmark import Precision
from winnow.reporting.exploration_plots import SearchPoint, plot_search
from winnow.reporting.html import MISSING, Row, format_interval, percent, signed
from winnow.reporting.search_page import FrontRow, render_search_page
from winnow.reporting.speed_section import RUNTIME_NAMES
from winnow.reporting.wording import describe_peak_share
from winnow.search.cost import TIME_OBJECTIVES, describe_cost
from winnow.search.loop import SearchProgress, describe_point
from winnow.search.optuna_study import EndedTrial
from winnow.search.trial import SearchContext
from winnow.search.trial_front import trials_on_front
from winnow.selection.gates import WORST_END_ALLOWANCES

console = Terminal()
BETTER = {"latency": "faster", "throughput": "faster", "size": "smaller", "energy": "cheaper"}


def describe_verdict(rows: list[FrontRow], progress: SearchProgress, config: Config) -> str:
    """Return the result of the search in a sentence or two."""
    settings = config.search
    limit = settings.max_drop_points
    allowed = f"{limit:g} points or less ({WORST_END_ALLOWANCES * limit:g} at the worst end of the interval)"
    runtime = f" on {RUNTIME_NAMES[settings.runtime]}" if settings.objective in TIME_OBJECTIVES else ""
    dense = f"Dense: {describe_cost(settings, progress.dense_cost)}{runtime}."
    comparative = BETTER[settings.objective]
    row = next((row for row in rows if row.chosen), None)
    failed = next((row for row in rows if row.not_confirmed), None)
    if failed is not None:
        return (
            f"Trial {failed.number} ({failed.what}) was selected, but the confirming half of validation does not "
            f"confirm it: {failed.reason}. No other trial is selected instead, since that would select on that half; "
            "more minutes, more validation images or a larger search.max_drop_points may find another. "
            f"{dense}"
        )
    if row is None:
        return f"No candidate {comparative} than dense is shown to lose {allowed}: dense remains the best. {dense}"
    peak_share = "" if row.of_peak is None else f", at {percent(row.of_peak, 0)} of the processor's peak"
    to_reference, to_dense = (format_interval(drop.low, drop.high) for drop in (row.drop, row.drop_to_dense))
    if row.drop != row.drop_to_dense:
        to_dense = f"{to_reference} against the better of dense and {CONTROL}, {to_dense}"
    return (
        f"Trial {row.number} ({row.what}) is the cheapest shown to lose {allowed}: "
        f"{row.cost_text}, {row.times_dense:.2f} times {comparative} than dense{runtime}{peak_share}. "
        f"Points lost on the half of validation that confirms, 95 % interval: {to_dense} against dense. {dense}"
    )


def write_files(
    folder: Path, progress: SearchProgress, rows: list[FrontRow], context: SearchContext, verdict: str
) -> None:
    """Write front.png, search.json and report.html into the search's folder."""
    settings = context.config.search
    row_of = {row.number: row for row in rows}
    front_numbers = {point.number for point in trials_on_front(progress.finished_points)}
    points = []
    for point in progress.finished_points:
        row = row_of.get(point.number)
        ends = (row.drop.low, row.drop.high) if row else None
        marks = row.marks if row else ()
        points.append(SearchPoint(point.number, point.cost, point.drop, ends, marks, point.number in front_numbers))
    axis = {"latency": "p50 of a call, ms", "throughput": "seconds per image", "size": "MB", "energy": "mJ per image"}
    label = f"{axis[settings.objective]} ({settings.runtime}; lower is better)"
    folder.mkdir(parents=True, exist_ok=True)
    plot = plot_search(points, progress.dense_cost, settings.max_drop_points, label)
    (folder / "front.png").write_bytes(plot)
    trial_rows = [_trial_row(trial, settings) for trial in progress.trials]
    html = render_search_page(folder.name, verdict, rows, trial_rows, plot, _conditions(progress, context))
    (folder / "report.html").write_text(html, encoding="utf-8")
    table = [
        {
            "number": trial.number,
            "state": trial.state,
            "why": trial.why,
            "seconds": trial.seconds,
            "point": asdict(trial.point),
            "drop": trial.evaluation.drop if trial.evaluation else None,
            "cost": trial.evaluation.cost if trial.evaluation else None,
            "on_front": trial.number in front_numbers,
        }
        for trial in progress.trials
    ]
    summary = {"dense_cost": progress.dense_cost, "peaks": dict(progress.peaks), "seconds": progress.seconds}
    write_json(folder / "search.json", {"trials": table, **summary})


def _trial_row(trial: EndedTrial, settings: Search) -> Row:
    """Return the cells of a trial in the table of all trials."""
    outcome = f"{trial.state}: {trial.why}" if trial.why else trial.state
    evaluation = trial.evaluation
    figures = (signed(evaluation.drop), describe_cost(settings, evaluation.cost)) if evaluation else (MISSING, MISSING)
    return Row((str(trial.number), describe_point(trial.point), outcome, *figures))


def runtime_note(artifacts: Path, config: Config) -> str:
    """Return a note if the last run's winner is fastest on another runtime than the search's; else ""."""
    settings = config.search
    if settings.objective != "latency" and settings.objective != "throughput":
        return ""
    try:
        details = SelectionRecord.read(artifacts / "select").details
    except ArtifactError:
        return ""
    name = details.winner or ROOT
    row = details.speeds.best[name].of(settings.objective)
    if row is None or row.runtime == settings.runtime:
        return ""
    return (
        f"in the last run {name} was fastest on {RUNTIME_NAMES[row.runtime]}, while this search measures on "
        f"{RUNTIME_NAMES[settings.runtime]} (search.runtime); winnow run times the added candidates on all runtimes"
    )


def _conditions(progress: SearchProgress, context: SearchContext) -> list[str]:
    settings = context.config.search
    states = [trial.state for trial in progress.trials]
    counts = [f"{states.count(state)} {state}" for state in ("finished", "given up", "impossible")]
    in_turns = ", measured interleaved with dense, while no other winnow process of this user was computing"
    return [
        f"Trials: {len(states)} ({', '.join(counts)}), {format_duration(progress.seconds)} of work",
        f"Objective: {settings.objective} on {settings.runtime}"
        + (in_turns if settings.objective in TIME_OBJECTIVES else ""),
        f"Recovery of {settings.epochs} epochs; structures: {', '.join(settings.structures)}; int8: {settings.int8}",
        *([f"{describe_peak_share(progress.peaks)}, timed when the search began"] if progress.peaks else []),
        f"Machine: {context.machine}",
    ]


def print_front(rows: list[FrontRow], verdict: str, peaks: Mapping[Precision, float]) -> None:
    """Print the front as a table, the meaning of its peak shares, and the verdict."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "candidate", "points lost", "cost", "x dense", *(["of peak"] if peaks else []), ""):
        table.add_column(heading)
    for row in rows:
        cells = [signed(row.drop.points), row.cost_text, f"{row.times_dense:.2f}"]
        shares = [percent(row.of_peak, 0)] if peaks else []
        table.add_row(str(row.number), row.what, *cells, *shares, ", ".join(row.marks))
    console.print(table)
    if peaks:
        console.print(f"{describe_peak_share(peaks)}, timed when the search began.")
    console.print(verdict)
