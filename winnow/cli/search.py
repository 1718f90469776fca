"""`winnow search`: candidates that nobody wrote down, within a budget, and the front of what was found.

Each trial is a run in MLflow below one run of the search. The chosen point goes into params.yaml with `--add`; from
then on its candidates are stages like any other.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.project import announced_servers, benchmark_target, gpu_slots, run_lock, watchdog
from tasks.project.paths import ProjectPaths
from tasks.tracking import search_runs
from tasks.versioning import dvc_stages
from tasks.versioning.dvc_stages import CANDIDATE
from winnow.cli.params_editor import edited_by, write_params
from winnow.cli.progress import tell_progress
from winnow.cli.search_results import front_of, print_front, runtime_remark, verdict_of, write_files
from winnow.cli.terminal import Terminal
from winnow.config import CONTROL, ROOT, Config
from winnow.config.candidates import NAME, NAME_IN_WORDS, TAKEN
from winnow.errors import ConfigError, MissingExtra
from winnow.hardware import cpu_flags, saturates
from winnow.search.loop import Progress, search
from winnow.search.trial import SearchContext
from winnow.steps.compress import Folders

console = Terminal()


@dataclass(frozen=True)
class WorkerPool:
    """Who runs trials: so many processes of this machine, or the workers of a Dask scheduler."""

    workers: int = 1
    scheduler: str = ""


ALONE = WorkerPool()


def run_search(places: ProjectPaths, config: Config, name: str, add: str, crew: WorkerPool = ALONE) -> int:
    """Search, show, and perhaps add what was chosen to params.yaml."""
    check_names(config, name, add)
    _check_made(places, config)
    at, home = places.artifacts, places.state_dir / "search" / name
    tell_progress()
    check_crew(places, crew)
    with run_lock.run_alone(places):
        folders = Folders(at / "data", at / "pretrain", at / "candidates", home / "scratch", places.answers)
        safe = any(map(saturates, (benchmark_target.serving_flags(places, config), cpu_flags())))
        place = SearchContext(config, folders, home / "trials", overflow_safe=safe)
        if remark := runtime_remark(at, config):
            console.print(f"Note: {remark}")
        log = search_runs.Log(places, config, name)
        try:
            progress = _search(place, home / "study.db", log, crew)
        finally:
            log.pause()
        rows = front_of(progress, place)
        chosen = next((row.number for row in rows if row.chosen), None)
        taken = next((trial for trial in progress.trials if trial.number == chosen), None)
        verdict = verdict_of(rows, progress, config)
        write_files(home, progress, rows, place, verdict)
        print_front(rows, verdict, progress.peaks)
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


def _check_made(places: ProjectPaths, config: Config) -> None:
    """Raise ConfigError where what the search begins from is not there, or not what params.yaml says."""
    needed = ["ingest", "pretrain", "finetune", *([f"{CANDIDATE}{CONTROL}"] if CONTROL in config.candidates else [])]
    stale = dvc_stages.stale(places.root, config)
    for stage in needed:
        if stage in stale:
            raise ConfigError(f"the search begins from {stage}, which has to run ({stale[stage][0]}): winnow run first")


def check_crew(places: ProjectPaths, crew: WorkerPool) -> None:
    """Raise ConfigError or MissingExtra for workers that cannot be had here, before anything is begun."""
    if crew == ALONE:
        return
    if crew.workers < 1 or (crew.scheduler and crew.workers > 1):
        raise ConfigError("--workers: at least 1, and none beside --scheduler, whose workers are there already")
    if gpu_slots.has_gpu() and not crew.scheduler:
        raise ConfigError("--workers: trainings run on the GPU here, which takes one at a time; leave it out")
    for package in ("distributed", "prefect_dask"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "parallel")
    announced_servers.check_prefect()
    if not announced_servers.report_to_prefect(places) and crew.scheduler:
        raise ConfigError("--scheduler: its workers report to Prefect; set PREFECT_API_URL to a server they reach")
    watchdog.start(places)


def _search(place: SearchContext, storage: Path, log: search_runs.Log, crew: WorkerPool) -> Progress:
    if crew == ALONE:
        return search(place, storage, log.trial)
    from flows.search import search_side_by_side

    return search_side_by_side(place, storage, log, crew.workers, crew.scheduler)


def _add(places: ProjectPaths, made: dict[str, Any]) -> None:
    """The chosen chain as candidates of params.yaml."""

    def join(document: Any) -> None:
        document["candidates"].update(made)

    write_params(places, edited_by((places.root / "params.yaml").read_text(encoding="utf-8"), join))
    console.print(f"winnow run makes {', '.join(made)} and judges with the others")
