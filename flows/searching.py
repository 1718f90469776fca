"""`winnow search`: candidates that nobody wrote down, within a budget, and the front of what was found.

Each trial is a run in MLflow below one run of the search. The chosen point goes into params.yaml with `--add`; from
then on its candidates are stages like any other.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.setting import edited_by, write_params
from flows.telling import tell_progress
from tasks import checkout, hosting, searched, servers, slots, versioning
from tasks.settings import Places
from tasks.versioning import CANDIDATE
from winnow.config import CONTROL, ROOT, Config, Search
from winnow.config.candidates import NAME, NAME_IN_WORDS, TAKEN
from winnow.data.images import load_images
from winnow.errors import ConfigError, MissingExtra
from winnow.evaluation import load_logits
from winnow.machine import cpu_flags, saturates
from winnow.progress import duration
from winnow.records import RECORD, read_record, write_json
from winnow.reporting.candidates import RUNTIMES
from winnow.reporting.explored import SearchPoint
from winnow.reporting.explored import searched as drawn
from winnow.reporting.searched import OnFront, Tried, page, span
from winnow.search.front import Found, choose, front, knee
from winnow.search.meter import describe_cost
from winnow.search.study import Progress, Trial, search, what_of
from winnow.search.trial import Workplace, evidence, lost, reference_logits, tree_of
from winnow.selection import WORST_END, judge_drop
from winnow.steps.compress import Folders

console = Console(highlight=False, soft_wrap=True)
TIMED = ("latency", "throughput")
BETTER = {"latency": "faster", "throughput": "faster", "size": "smaller", "energy": "cheaper"}


@dataclass(frozen=True)
class Crew:
    """Who runs trials: so many processes of this machine, or the workers of a Dask scheduler."""

    workers: int = 1
    scheduler: str = ""


ALONE = Crew()


def run_search(places: Places, config: Config, name: str, add: str, crew: Crew = ALONE) -> int:
    """Search, show, and perhaps add what was chosen to params.yaml."""
    check_names(config, name, add)
    _check_made(places, config)
    at, home = places.artifacts, places.hidden / "search" / name
    tell_progress()
    check_crew(places, crew)
    with checkout.run_alone(places):
        folders = Folders(at / "data", at / "pretrain", at / "candidates", home / "scratch", places.answers)
        safe = any(map(saturates, (hosting.serving_flags(places, config), cpu_flags())))
        place = Workplace(config, folders, home / "trials", overflow_safe=safe)
        if remark := _elsewhere(at, config):
            console.print(f"Note: {remark}")
        log = searched.Log(places, config, name)
        try:
            progress = _search(place, home / "study.db", log, crew)
        finally:
            log.pause()
        rows = front_of(progress, place)
        chosen = next((row.number for row in rows if row.chosen), None)
        taken = next((trial for trial in progress.trials if trial.number == chosen), None)
        verdict = _verdict(rows, progress, config)
        _leave(home, name, progress, rows, place, verdict)
        _show(rows, verdict)
        console.print(f"In {home.relative_to(places.root)}: report.html, front.png, search.json")
        log.close(progress, taken, [home / file for file in ("front.png", "search.json", "report.html")])
        if add and taken is not None:
            _add(places, place.candidates_of(taken.point, config.search.epochs, add))
        elif taken is not None:
            console.print(f"winnow search --name {name} --add NAME puts the chosen candidates into params.yaml")
    return 0


def check_names(config: Config, name: str, add: str) -> None:
    """Raise ConfigError for a search or candidates that cannot be called so, before anything is searched."""
    for option, given in (("--name", name), ("--add", add)):
        if given and not NAME.fullmatch(given):
            raise ConfigError(f"{option} {given}: no usable name, which consists of {NAME_IN_WORDS}")
    taken = sorted({add, f"{add}-int8"} & {*config.candidates, *TAKEN, ROOT, CONTROL})
    if taken:
        raise ConfigError(f"--add {add}: {', '.join(taken)} is there already; choose another name")


def _check_made(places: Places, config: Config) -> None:
    """Raise ConfigError where what the search begins from is not there, or not what params.yaml says."""
    needed = ["ingest", "pretrain", "finetune", *([f"{CANDIDATE}{CONTROL}"] if CONTROL in config.candidates else [])]
    stale = versioning.stale(places.root, config)
    for stage in needed:
        if stage in stale:
            raise ConfigError(f"the search begins from {stage}, which has to run ({stale[stage][0]}): winnow run first")


def check_crew(places: Places, crew: Crew) -> None:
    """Raise ConfigError or MissingExtra for workers that cannot be had here, before anything is begun."""
    if crew == ALONE:
        return
    if crew.workers < 1 or (crew.scheduler and crew.workers > 1):
        raise ConfigError("--workers: at least 1, and none beside --scheduler, whose workers are there already")
    if slots.has_gpu() and not crew.scheduler:
        raise ConfigError("--workers: trainings run on the GPU here, which takes one at a time; leave it out")
    for package in ("distributed", "prefect_dask"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "parallel")
    servers.check_prefect()
    if not servers.report_to_prefect(places) and crew.scheduler:
        raise ConfigError("--scheduler: its workers report to Prefect; set PREFECT_API_URL to a server they reach")


def _search(place: Workplace, storage: Path, log: searched.Log, crew: Crew) -> Progress:
    if crew == ALONE:
        return search(place, storage, log.trial)
    from flows.parallel import search_side_by_side

    return search_side_by_side(place, storage, log, crew.workers, crew.scheduler)


def front_of(progress: Progress, place: Workplace) -> list[OnFront]:
    """The trials that nobody beats, the cheapest first, each with its intervals; the chosen one last if it is none."""
    settings, images = place.config.search, load_images(place.folders.data)
    finished = {trial.number: trial for trial in progress.trials if trial.found}
    better, dense = reference_logits(place, images), load_logits(place.folders.candidates / ROOT, images)

    def made_by(each: Found) -> Path:
        trial = finished[each.number]
        assert trial.look is not None
        return tree_of(place, trial.folder, settings.epochs) / trial.look.names[-1]

    def fits(each: Found) -> bool:
        gains = each.cost < progress.dense_cost
        return gains and judge_drop(evidence(better, made_by(each), images), settings.max_drop_points).passed

    chosen, bend = choose(progress.found, fits), knee(progress.found)
    rows = []
    shown = front(progress.found)
    for each in shown if chosen is None or chosen in shown else [*shown, chosen]:
        trial, made = finished[each.number], made_by(each)
        marks = {"chosen": each == chosen, "knee": each == bend}
        rows.append(
            OnFront(
                each.number,
                what_of(trial.point),
                lost(better, made, images),
                lost(dense, made, images),
                each.cost,
                describe_cost(settings, each.cost),
                progress.dense_cost / each.cost,
                tuple(mark for mark, holds in marks.items() if holds),
            )
        )
    return rows


def _verdict(rows: list[OnFront], progress: Progress, config: Config) -> str:
    """What was found, in a sentence or two."""
    settings = config.search
    most = settings.max_drop_points
    allowed = f"{most:g} points or less ({WORST_END * most:g} at the worst end of the interval)"
    dense = f"Dense: {describe_cost(settings, progress.dense_cost)}."
    row = next((row for row in rows if row.chosen), None)
    if row is None:
        better = BETTER[settings.objective]
        return f"Nothing {better} than dense is shown to lose {allowed}: dense stays the best. {dense}"
    return (
        f"Trial {row.number} ({row.what}) is the cheapest shown to lose {allowed}: "
        f"{row.cost_told}, {row.times_dense:.2f} times {BETTER[settings.objective]} than dense; against dense, 95 % "
        f"interval: {span(row.to_dense)} points lost. {dense}"
    )


def _leave(home: Path, name: str, progress: Progress, rows: list[OnFront], place: Workplace, verdict: str) -> None:
    """front.png, search.json and report.html."""
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
    html = page(name, verdict, rows, tried, picture, _conditions(progress, place))
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
    write_json(home / "search.json", {"trials": table, "dense_cost": progress.dense_cost, "seconds": progress.seconds})


def _tried(trial: Trial, settings: Search) -> Tried:
    look, outcome = trial.look, f"{trial.state}: {trial.why}" if trial.why else trial.state
    if look is None:
        return Tried(trial.number, what_of(trial.point), outcome, None, "")
    return Tried(trial.number, what_of(trial.point), outcome, look.drop, describe_cost(settings, look.cost))


def _elsewhere(artifacts: Path, config: Config) -> str:
    """Where the runtime that the search measures on is not the one on which the last run's winner is fastest."""
    settings, decided = config.search, artifacts / "select"
    if settings.objective not in TIMED or not (decided / RECORD).is_file():
        return ""
    details = read_record(decided).details
    name = details["winner"] or ROOT
    row = details["speeds"]["best"][name][settings.objective]
    if row is None or row["runtime"] == settings.runtime:
        return ""
    return (
        f"{name} of the last run is fastest on {RUNTIMES[row['runtime']]}, this search measures on "
        f"{RUNTIMES[settings.runtime]} (search.runtime): winnow run times what it finds on all of them"
    )


def _conditions(progress: Progress, place: Workplace) -> list[str]:
    settings = place.config.search
    states = [trial.state for trial in progress.trials]
    counts = [f"{states.count(state)} {state}" for state in ("finished", "given up", "impossible")]
    in_turns = ", measured in turns with dense, while no other winnow process of this user trained"
    return [
        f"{len(states)} trials ({', '.join(counts)}), {duration(progress.seconds)} of work",
        f"Objective: {settings.objective} on {settings.runtime}" + (in_turns if settings.objective in TIMED else ""),
        *([remark] if (remark := _elsewhere(place.folders.candidates.parent, place.config)) else []),
        f"Recovery of {settings.epochs} epochs; structures: {', '.join(settings.structures)}; int8: {settings.int8}",
        f"Machine: {place.machine}",
    ]


def _show(rows: list[OnFront], verdict: str) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "what", "points lost", "cost", "x dense", ""):
        table.add_column(heading)
    for row in rows:
        cells = (f"{row.drop.points:.1f}", row.cost_told, f"{row.times_dense:.2f}")
        table.add_row(str(row.number), row.what, *cells, ", ".join(row.marks))
    console.print(table)
    console.print(verdict)


def _add(places: Places, made: dict[str, Any]) -> None:
    """The chosen chain as candidates of params.yaml."""

    def join(document: Any) -> None:
        document["candidates"].update(made)

    write_params(places, edited_by((places.root / "params.yaml").read_text(encoding="utf-8"), join))
    console.print(f"winnow run makes {', '.join(made)} and judges with the others")
