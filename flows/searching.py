"""`winnow search`: candidates that nobody wrote down, within a budget, and the front of what was found.

Each trial is a run in MLflow below one run of the search. The chosen point goes into params.yaml with `--add`; from
then on its candidates are stages like any other.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.setting import edited_by, write_params
from tasks import checkout, searched
from tasks.settings import Places
from winnow.config import ROOT, Config
from winnow.data.images import load_images
from winnow.errors import ConfigError
from winnow.evaluation import load_logits
from winnow.intervals import Drop
from winnow.records import write_json
from winnow.reporting.plots import SearchPoint
from winnow.reporting.plots import searched as picture
from winnow.search.front import Found, choose, front, knee
from winnow.search.space import chain
from winnow.search.study import Progress, Trial, search
from winnow.search.trial import Workplace, describe_cost, lost, tree_of
from winnow.steps.compress import Folders

console = Console(highlight=False, soft_wrap=True)


def run_search(places: Places, config: Config, name: str, add: str) -> int:
    """Search, show, and perhaps add what was chosen to params.yaml."""
    at = places.artifacts
    for needed in (at / "data", at / "pretrain", at / "candidates" / ROOT):
        if not (needed / "record.json").is_file():
            raise ConfigError(f"{needed} is not there: winnow run first, which makes dense; the search begins from it")
    home = places.hidden / "search" / name
    with checkout.run_alone(places):
        folders = Folders(at / "data", at / "pretrain", at / "candidates", home / "scratch")
        place = Workplace(config, folders, home / "trials")
        log = searched.Log(places, config, name)
        try:
            progress = search(place, home / "study.db", log.trial)
        finally:
            log.pause()
        chosen = choose(progress.found, config.search.max_drop_points)
        _leave(home, progress, config, chosen)
        taken = next((trial for trial in progress.trials if chosen and trial.number == chosen.number), None)
        log.close(progress, taken, [home / "front.png", home / "search.json"])
    _show(progress, config, taken, place)
    if add and taken is not None:
        _add(places, config, taken, add)
    elif taken is not None:
        console.print(f"winnow search --name {name} --add NAME puts the chosen candidates into params.yaml")
    return 0


def _leave(home: Path, progress: Progress, config: Config, chosen: Found | None) -> None:
    """front.png and search.json."""
    on_front = {each.number for each in front(progress.found)}
    points = [SearchPoint(each.cost, each.drop, each.number in on_front, each == chosen) for each in progress.found]
    axis = {"latency": "p50 of a call, ms", "throughput": "seconds an image", "size": "MB", "energy": "mJ an image"}
    label = f"{axis[config.search.objective]} ({config.search.runtime}; left is better)"
    home.mkdir(parents=True, exist_ok=True)
    (home / "front.png").write_bytes(picture(points, progress.dense_cost, config.search.max_drop_points, label))
    table = [
        {
            "number": trial.number,
            "state": trial.state,
            "why": trial.why,
            "seconds": trial.seconds,
            "point": asdict(trial.point),
            "drop": trial.look.drop if trial.look else None,
            "cost": trial.look.cost if trial.look else None,
            "on_front": trial.number in on_front,
        }
        for trial in progress.trials
    ]
    write_json(home / "search.json", {"trials": table, "dense_cost": progress.dense_cost, "seconds": progress.seconds})


def _show(progress: Progress, config: Config, chosen: Trial | None, place: Workplace) -> None:
    settings, bend = config.search, knee(progress.found)
    finished = {trial.number: trial for trial in progress.trials if trial.found}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "what", "of the MACs", "hint", "points lost", "cost", "x dense", ""):
        table.add_column(heading)
    for each in front(progress.found):
        trial = finished[each.number]
        mark = "chosen" if chosen and chosen.number == each.number else ""
        mark += (", knee" if mark else "knee") if each == bend else ""
        what = trial.point.structure + (", int8" if trial.point.int8 else "")
        cost = describe_cost(settings, each.cost)
        ratio = f"{progress.dense_cost / each.cost:.2f}"
        table.add_row(
            str(each.number), what, f"{trial.point.macs:.0%}", trial.point.hint, f"{each.drop:.1f}", cost, ratio, mark
        )
    console.print(table)
    states = [trial.state for trial in progress.trials]
    counts = [f"{states.count(state)} {state}" for state in ("finished", "given up", "impossible")]
    console.print(f"{len(states)} trials: {', '.join(counts)}. Dense: {describe_cost(settings, progress.dense_cost)}.")
    if chosen is None:
        console.print(f"Nothing loses {settings.max_drop_points:g} points or less; dense stays the best there is.")
        return
    loss = interval(chosen, place)
    told = f"Trial {chosen.number} is the cheapest that loses {settings.max_drop_points:g} points or less"
    console.print(f"{told}; against dense, 95 % interval: {loss.low:.1f} to {loss.high:.1f} points lost.")


def interval(trial: Trial, place: Workplace) -> Drop:
    """The points that a finished trial loses against dense, with their 95 % interval, paired on the same images."""
    assert trial.look is not None
    images = load_images(place.folders.data)
    candidate = tree_of(place, trial.folder, place.config.search.epochs) / trial.look.names[-1]
    return lost(load_logits(place.folders.candidates / ROOT, images), candidate, images)


def _add(places: Places, config: Config, chosen: Trial, name: str) -> None:
    """The chosen chain as candidates of params.yaml."""
    made = chain(chosen.point, config.search, config.search.epochs, name)
    if taken := sorted(made.keys() & config.candidates.keys()):
        raise ConfigError(f"--add {name}: params.yaml has {', '.join(taken)} already; choose another name")

    def join(document: Any) -> None:
        document["candidates"].update(made)

    write_params(places, edited_by((places.root / "params.yaml").read_text(encoding="utf-8"), join))
    console.print(f"winnow run makes {', '.join(made)} and judges with the others")
