"""What a search found: its front with intervals, the verdict in words, and the files and tables that show both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tasks.project.state_files import read_kept
from winnow.benchmark.peak_throughput import share_of_peak
from winnow.cli.terminal import Terminal
from winnow.config import CONTROL, ROOT, Config, Search
from winnow.data.dataset import load_images
from winnow.data.splits import choosing_half
from winnow.errors import ArtifactError
from winnow.eta import duration
from winnow.evaluation.metrics import load_logits
from winnow.records import read_record, write_json
from winnow.reporting.candidates_section import RUNTIMES
from winnow.reporting.exploration_plots import SearchPoint
from winnow.reporting.exploration_plots import searched as drawn
from winnow.reporting.html import percent, signed
from winnow.reporting.search_page import OnFront, Tried, page, span
from winnow.reporting.wording import of_peak_told
from winnow.search.accuracy_loss import evidence, reference_logits
from winnow.search.cost import TIMED, describe_cost, seconds_an_image
from winnow.search.loop import Progress, what_of
from winnow.search.optuna_study import Trial
from winnow.search.pareto import TrialPoint, choose, front, knee
from winnow.search.trial import SearchContext, load_answers, tree_of
from winnow.selection.decision import WORST_END, judge_drop

console = Terminal()
BETTER = {"latency": "faster", "throughput": "faster", "size": "smaller", "energy": "cheaper"}


CONFIRMATIONS = "confirmations.json"
"""Numbers of the trials that the confirming half of validation has seen, over all calls of a search."""


def front_of(progress: Progress, place: SearchContext) -> list[OnFront]:
    """Return the trials that nobody beats, the cheapest first, with intervals; the chosen one last if it is none.

    Figures are of the half of validation that chooses; those of the chosen trial are of the other half, which
    confirms it or does not. Where it does not, no other trial is taken in its place: that would be choosing on the
    confirming half.
    """
    settings, images = place.config.search, load_images(place.folders.data)
    finished = {trial.number: trial for trial in progress.trials if trial.found}
    better, dense = reference_logits(place.references, images), load_logits(place.folders.candidates / ROOT, images)
    chooses_V = choosing_half(images)

    def answers(each: TrialPoint) -> NDArray[np.float32]:
        return load_answers(place, finished[each.number].folder, images)

    def fits(each: TrialPoint) -> bool:
        gains = each.cost < progress.dense_cost
        return gains and judge_drop(evidence(better, answers(each), images, chooses_V), settings.max_drop_points).passed

    chosen, bend, shown = choose(progress.found, fits), knee(progress.found), front(progress.found)
    rows = []
    for each in shown if chosen is None or chosen in shown else [*shown, chosen]:
        candidates, gate = 1, None
        part_V = chooses_V
        if each == chosen:
            candidates, part_V = _looks_at_confirming_half(place, each.number), ~chooses_V
            gate = judge_drop(evidence(better, answers(each), images, part_V, candidates), settings.max_drop_points)
        drop, to_dense = (
            known.labelled or known.answers
            for known in (evidence(one, answers(each), images, part_V, candidates) for one in (better, dense))
        )
        marks = {
            "chosen": gate is not None and gate.passed,
            "not confirmed": gate is not None and not gate.passed,
            "knee": each == bend,
        }
        rows.append(
            OnFront(
                each.number,
                what_of(finished[each.number].point),
                drop,
                to_dense,
                each.cost,
                describe_cost(settings, each.cost),
                progress.dense_cost / each.cost,
                _of_peak(each, finished[each.number], progress, place),
                tuple(mark for mark, holds in marks.items() if holds),
                gate.reason if gate else "",
            )
        )
    return rows


def _looks_at_confirming_half(place: SearchContext, number: int) -> int:
    """Count this trial among those that the confirming half has seen -> how many; as many widen the interval."""
    path = place.trials.parent / CONFIRMATIONS
    remedy = "nobody knows how often the confirming half was looked at; search anew, under another name (--name)"
    seen: list[int] = read_kept(path, list[int], [], remedy)
    if number not in seen:
        seen.append(number)
        write_json(path, seen)
    return len(seen)


def _of_peak(each: TrialPoint, trial: Trial, progress: Progress, place: SearchContext) -> float | None:
    """Its multiply-adds a second as a share of the processor's peak; None where cost is no time."""
    seconds, look = seconds_an_image(place.config.search, each.cost), trial.look
    if look is None or seconds is None or not progress.peaks:
        return None
    made = tree_of(place, trial.folder, place.config.search.epochs) / look.names[-1]
    peak = progress.peaks[read_record(made).details["precision"]]
    return share_of_peak(1 / seconds, look.metrics["compute/macs"], peak)


def verdict_of(rows: list[OnFront], progress: Progress, config: Config) -> str:
    """What was found, in a sentence or two."""
    settings = config.search
    most = settings.max_drop_points
    allowed = f"{most:g} points or less ({WORST_END * most:g} at the worst end of the interval)"
    on = f" on {RUNTIMES[settings.runtime]}" if settings.objective in TIMED else ""
    dense = f"Dense: {describe_cost(settings, progress.dense_cost)}{on}."
    better = BETTER[settings.objective]
    row = next((row for row in rows if row.chosen), None)
    failed = next((row for row in rows if row.not_confirmed), None)
    if failed is not None:
        return (
            f"Trial {failed.number} ({failed.what}) was chosen, but the half of validation that did not choose "
            f"does not confirm it: {failed.reason}. Nothing is taken in its place, which would be choosing on that "
            "half; more minutes, more validation images or a larger search.max_drop_points may find another. "
            f"{dense}"
        )
    if row is None:
        return f"Nothing {better} than dense is shown to lose {allowed}: dense stays the best. {dense}"
    at = "" if row.of_peak is None else f", at {percent(row.of_peak, 0)} of the processor's peak"
    judged = "" if row.drop == row.to_dense else f"{span(row.drop)} against the better of dense and {CONTROL}, "
    return (
        f"Trial {row.number} ({row.what}) is the cheapest shown to lose {allowed}: "
        f"{row.cost_told}, {row.times_dense:.2f} times {better} than dense{on}{at}. "
        f"Points lost on the half of validation that confirms, 95 % interval: {judged}{span(row.to_dense)} "
        f"against dense. {dense}"
    )


def write_files(home: Path, progress: Progress, rows: list[OnFront], place: SearchContext, verdict: str) -> None:
    """front.png, search.json and report.html, in the folder that is named after the search."""
    settings = place.config.search
    best = {row.number: row for row in rows}
    unbeaten = {each.number for each in front(progress.found)}
    points = []
    for each in progress.found:
        row = best.get(each.number)
        ends = (row.drop.low, row.drop.high) if row else None
        marks = row.marks if row else ()
        points.append(SearchPoint(each.number, each.cost, each.drop, ends, marks, each.number in unbeaten))
    axis = {"latency": "p50 of a call, ms", "throughput": "seconds an image", "size": "MB", "energy": "mJ an image"}
    label = f"{axis[settings.objective]} ({settings.runtime}; left is better)"
    home.mkdir(parents=True, exist_ok=True)
    picture = drawn(points, progress.dense_cost, settings.max_drop_points, label)
    (home / "front.png").write_bytes(picture)
    tried = [_tried(trial, settings) for trial in progress.trials]
    html = page(home.name, verdict, rows, tried, picture, _conditions(progress, place))
    (home / "report.html").write_text(html, encoding="utf-8")
    table = [
        {
            "number": trial.number,
            "state": trial.state,
            "why": trial.why,
            "seconds": trial.seconds,
            "point": asdict(trial.point),
            "drop": trial.look.drop if trial.look else None,
            "cost": trial.look.cost if trial.look else None,
            "on_front": trial.number in unbeaten,
        }
        for trial in progress.trials
    ]
    summary = {"dense_cost": progress.dense_cost, "peaks": dict(progress.peaks), "seconds": progress.seconds}
    write_json(home / "search.json", {"trials": table, **summary})


def _tried(trial: Trial, settings: Search) -> Tried:
    look, outcome = trial.look, f"{trial.state}: {trial.why}" if trial.why else trial.state
    if look is None:
        return Tried(trial.number, what_of(trial.point), outcome, None, "")
    return Tried(trial.number, what_of(trial.point), outcome, look.drop, describe_cost(settings, look.cost))


def runtime_remark(artifacts: Path, config: Config) -> str:
    """Where the last run's winner is fastest, if the search measures on another runtime; "" where nobody knows."""
    settings = config.search
    if settings.objective not in TIMED:
        return ""
    try:
        details = read_record(artifacts / "select").details
    except ArtifactError:
        return ""
    name = details["winner"] or ROOT
    row = details["speeds"]["best"][name][settings.objective]
    if row is None or row["runtime"] == settings.runtime:
        return ""
    return (
        f"in the last run {name} was fastest on {RUNTIMES[row['runtime']]}, while this search measures on "
        f"{RUNTIMES[settings.runtime]} (search.runtime); winnow run times what it finds on all of them"
    )


def _conditions(progress: Progress, place: SearchContext) -> list[str]:
    settings = place.config.search
    states = [trial.state for trial in progress.trials]
    counts = [f"{states.count(state)} {state}" for state in ("finished", "given up", "impossible")]
    in_turns = ", measured in turns with dense, while no other winnow process of this user trained"
    return [
        f"Trials: {len(states)} ({', '.join(counts)}), {duration(progress.seconds)} of work",
        f"Objective: {settings.objective} on {settings.runtime}" + (in_turns if settings.objective in TIMED else ""),
        f"Recovery of {settings.epochs} epochs; structures: {', '.join(settings.structures)}; int8: {settings.int8}",
        *([f"{of_peak_told(progress.peaks)}, timed when the search began"] if progress.peaks else []),
        f"Machine: {place.machine}",
    ]


def print_front(rows: list[OnFront], verdict: str, peaks: Mapping[str, float]) -> None:
    """The front as a table, what its shares of the peak mean, and the verdict, on the terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "what", "points lost", "cost", "x dense", *(["of peak"] if peaks else []), ""):
        table.add_column(heading)
    for row in rows:
        cells = [signed(row.drop.points), row.cost_told, f"{row.times_dense:.2f}"]
        shares = [percent(row.of_peak, 0)] if peaks else []
        table.add_row(str(row.number), row.what, *cells, *shares, ", ".join(row.marks))
    console.print(table)
    if peaks:
        console.print(f"{of_peak_told(peaks)}, timed when the search began.")
    console.print(verdict)
