"""`winnow search`: generate candidates within a budget, and show the Pareto front of those that were tried.

Each trial is a run in MLflow below one run of the search. `--add` puts the chosen candidates into params.yaml; from
then on they are stages like any other.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.project import benchmark_target, gpu_slots, run_lock, running_servers, watchdog
from tasks.project.paths import ProjectPaths
from tasks.tracking import search_runs
from tasks.versioning import dvc_stages
from tasks.versioning.dvc_stages import CANDIDATE_PREFIX
from winnow.cli.params_editor import edit_document, write_params
from winnow.cli.progress import show_log
from winnow.cli.search_front import front_rows
from winnow.cli.search_results import describe_verdict, print_front, runtime_note, write_files
from winnow.cli.terminal import Terminal
from winnow.config import CONTROL, ROOT, Config
from winnow.config.candidate_names import NAME_RULE, RESERVED_NAMES, is_candidate_name
from winnow.errors import ConfigError, MissingExtra
from winnow.hardware import cpu_flags, int8_sums_saturate
from winnow.search.loop import SearchProgress, search
from winnow.search.space import candidate_names
from winnow.search.trial import SearchContext
from winnow.steps.compress import CandidateFolders

console = Terminal()


@dataclass(frozen=True)
class WorkerPool:
    """The processes that run trials: on this machine, or the workers of a Dask scheduler."""

    workers: int = 1
    scheduler: str = ""


THIS_PROCESS = WorkerPool()


def run_search(paths: ProjectPaths, config: Config, name: str, add: str, pool: WorkerPool = THIS_PROCESS) -> int:
    """Search, print the front, and add the selected candidates to params.yaml where `add` names them."""
    check_names(config, name, add)
    artifacts, folder = paths.artifacts, paths.state_dir / "search" / name
    show_log()
    check_pool(paths, pool)
    with run_lock.lock_run(paths):
        _check_inputs(paths, config)
        folders = CandidateFolders(
            artifacts / "data",
            artifacts / "pretrain",
            artifacts / "candidates",
            folder / "scratch",
            paths.answers,
            artifacts / "embed",
        )
        overflow_safe = any(map(int8_sums_saturate, (benchmark_target.serving_flags(paths, config), cpu_flags())))
        context = SearchContext(config, folders, folder / "trials", overflow_safe=overflow_safe)
        if note := runtime_note(artifacts, config):
            console.print(f"Note: {note}")
        log = search_runs.SearchRun(paths, config, name)
        try:
            progress = _run_trials(context, folder / "study.db", log, pool)
        finally:
            log.pause()
        rows = front_rows(progress, context)
        chosen = next((row.number for row in rows if row.chosen), None)
        chosen_trial = next((trial for trial in progress.trials if trial.number == chosen), None)
        verdict = describe_verdict(rows, progress, config)
        write_files(folder, progress, rows, context, verdict)
        print_front(rows, verdict, progress.peaks)
        console.print(f"In {folder.relative_to(paths.root)}: report.html, front.png, search.json")
        log.close(progress, chosen_trial, [folder / file for file in ("front.png", "search.json", "report.html")])
        if add and chosen_trial is not None:
            _add_candidates(paths, context.candidates_of(chosen_trial.point, config.search.epochs, add))
        elif chosen_trial is not None:
            console.print(f"winnow search --name {name} --add NAME adds the selected candidates to params.yaml")
    return 0


def check_form_of_names(name: str, add: str) -> None:
    """Raise ConfigError for names that no search and no candidate can have."""
    if not is_candidate_name(name):
        raise ConfigError(f"--name {name!r}: not a valid name, which consists of {NAME_RULE}")
    if add and not all(map(is_candidate_name, candidate_names(add))):
        names = " and ".join(candidate_names(add))
        raise ConfigError(f"--add {add!r}: not a valid name, which consists of {NAME_RULE}; {names} would be added")


def check_names(config: Config, name: str, add: str) -> None:
    """Raise ConfigError for an invalid name of a search or of candidates, before the search begins."""
    check_form_of_names(name, add)
    taken_names = sorted({*candidate_names(add)} & {*config.candidates, *RESERVED_NAMES, ROOT, CONTROL})
    if taken_names:
        raise ConfigError(f"--add {add}: {', '.join(taken_names)} exists already; choose another name")


def _check_inputs(paths: ProjectPaths, config: Config) -> None:
    """Raise ConfigError where the inputs of the search are missing or stale."""
    needed = [
        "ingest",
        "pretrain",
        "finetune",
        *([f"{CANDIDATE_PREFIX}{CONTROL}"] if CONTROL in config.candidates else []),
    ]
    stale = dvc_stages.stale_stages(paths.root, config)
    for stage in needed:
        if stage in stale:
            raise ConfigError(f"the search needs {stage}, which is stale ({stale[stage][0]}): winnow run first")


def check_pool(paths: ProjectPaths, pool: WorkerPool) -> None:
    """Raise ConfigError or MissingExtra for workers that are not available, before the search begins."""
    if pool == THIS_PROCESS:
        return
    if pool.workers < 1 or (pool.scheduler and pool.workers > 1):
        raise ConfigError("--workers: at least 1, and not together with --scheduler, which has its own workers")
    if gpu_slots.has_gpu() and not pool.scheduler:
        raise ConfigError("--workers: this machine trains on its GPU, one training at a time; leave it out")
    for package in ("distributed", "prefect_dask"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "parallel")
    running_servers.check_prefect()
    if not running_servers.report_to_prefect(paths) and pool.scheduler:
        raise ConfigError(
            "--scheduler: its workers report to Prefect; set PREFECT_API_URL to a server that they can reach"
        )
    watchdog.start(paths)


def _run_trials(context: SearchContext, storage: Path, log: search_runs.SearchRun, pool: WorkerPool) -> SearchProgress:
    if pool == THIS_PROCESS:
        return search(context, storage, log.trial)
    from flows.search import search_in_parallel

    with running_servers.temporary_server_errors():
        return search_in_parallel(context, storage, log, pool.workers, pool.scheduler)


def _add_candidates(paths: ProjectPaths, candidates: dict[str, Any]) -> None:
    """Add the chosen chain to the candidates of params.yaml."""

    def join(document: Any) -> None:
        document["candidates"].update(candidates)

    write_params(paths, edit_document((paths.root / "params.yaml").read_text(encoding="utf-8"), join))
    console.print(f"winnow run makes {', '.join(candidates)} and judges with the others")
