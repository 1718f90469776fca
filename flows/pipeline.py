"""The flow of the whole chain: ingest, embed, pretrain, finetune, compress, benchmark, select, refit, report, promote.

Stages that DVC calls up to date show in the graph and do not run. One stage at a time: two trainings on one machine
only slow each other down, and DVC allows one writer. Results are small JSON; the artifacts stay where DVC put them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prefect import flow, runtime
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts
from flows.promote import show_form
from flows.runtime import hide_tracebacks, locked_project
from tasks import time_left
from tasks.benchmark import benchmark
from tasks.compress import METHODS
from tasks.embed import embed
from tasks.finetune import finetune
from tasks.ingest import ingest
from tasks.pretrain import pretrain
from tasks.project.paths import ProjectPaths, check_files
from tasks.promote import promote
from tasks.refit import refit
from tasks.registry import promotion_state, registered_weights
from tasks.report import report
from tasks.select import select
from tasks.stage_processes import preloaded
from tasks.stage_runner import StageResult, stop_running
from tasks.track import open_run, track
from tasks.tracking import mlflow_runs, tracked_runs
from tasks.tracking.mlflow_client import StoreError
from tasks.versioning import dvc_stages, installed_code, integrity, s3_mirror
from winnow.config import ROOT, Config, load_config, topological_order


@flow(
    name="winnow",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
    validate_parameters=False,
    persist_result=True,  # so that nothing puts a completed run back
    result_serializer="json",
)
def pipeline(root: str = ".", retries: int = 0) -> list[StageResult]:
    """Bring all stages up to date, track them, promote the winner; returns what each stage did and its seconds.

    `retries`: further tries of a step that was killed, or that MLflow did not answer.
    """
    hide_tracebacks()
    with locked_project(root) as paths:
        return _bring_up_to_date(paths, retries)


def _bring_up_to_date(paths: ProjectPaths, retries: int) -> list[StageResult]:
    config = load_config(paths.root / "params.yaml")
    check_files(config, paths.root)
    if runtime.deployment.id:  # on a terminal the command line fetches
        if came := s3_mirror.fetch(paths, config):
            get_run_logger().info("fetched %d new or changed objects, removed %d", came.fetched, came.removed)
        registered_weights.fetch_weights(paths, config)
    if damaged := integrity.find_damaged(paths):
        get_run_logger().warning("%s, and will be made again", integrity.describe_damaged(paths, damaged))
        integrity.remove_damaged(paths, damaged)
    stale = dvc_stages.stale_stages(paths.root, config)
    done: list[StageResult] = []
    if stale or not tracked_runs.is_complete(paths, config):
        done += _execute(paths, config, stale, retries)
    if not promotion_state.is_up_to_date(paths, config):
        promotion = promote.with_options(retries=retries)(str(paths.root))
        done.append(promotion)
        if promotion["waits"] and os.environ.get("PREFECT_API_URL") and (warning := show_form(config)):
            get_run_logger().warning("%s", warning)
    if done:
        _show(paths)
    else:
        get_run_logger().info("Nothing has changed: no step runs.")
    return done


def _execute(
    paths: ProjectPaths, config: Config, stale: Mapping[str, Sequence[str]], retries: int
) -> list[StageResult]:
    """Run the chain within a run of MLflow, which is closed whatever happens."""
    why = "; ".join(f"{stage}: {reasons[0]}" for stage, reasons in stale.items())[:1000]
    parent_run: str = open_run.with_options(retries=retries)(str(paths.root), why)
    try:
        installed_code.write_digests(paths.root)
        steps = [stage.removeprefix(dvc_stages.CANDIDATE_PREFIX) for stage in stale]
        with preloaded(paths.root, is_needed=bool(stale)), time_left.tracked(paths, parent_run, steps):
            results = _run_chain(paths, config, stale, parent_run, retries)
        track.with_options(retries=retries)(str(paths.root), parent_run)
    except BaseException as error:
        if not isinstance(error, Exception):
            stop_running(parent_run)
        mlflow_runs.close_execution(paths, parent_run, ok=False)
        raise
    return results


def _run_chain(
    paths: ProjectPaths, config: Config, stale: Collection[str], parent_run: str, retries: int
) -> list[StageResult]:
    """Run every step after the one whose result it reads. Raises the first failure; what depends on it never starts."""
    futures: list[PrefectFuture[StageResult]] = []

    def submit(step: Any, stage: str, *names: str, after: Sequence[PrefectFuture[StageResult]]) -> Any:
        run = parent_run if stage in stale else None
        call = step.with_options(retries=retries).submit
        futures.append(call(str(paths.root), *names, run, return_state=False, wait_for=after))
        return futures[-1]

    data = submit(ingest, "ingest", after=[])
    embeddings = submit(embed, "embed", after=[data])
    backbone = submit(pretrain, "pretrain", after=[embeddings])
    candidates = {ROOT: submit(finetune, "finetune", after=[backbone])}
    for name in topological_order(dict(config.candidates)):
        candidate = config.candidates[name]
        stage, parent = dvc_stages.CANDIDATE_PREFIX + name, candidates[candidate.parent]
        candidates[name] = submit(METHODS[candidate.method], stage, name, after=[parent])
    speeds = submit(benchmark, "benchmark", after=list(candidates.values()))
    winner = submit(select, "select", after=[speeds])
    deployed = submit(refit, "refit", after=[winner])
    submit(report, "report", after=[deployed])
    return [future.result() for future in futures]


def _show(paths: ProjectPaths) -> None:
    """Write the run's page; where MLflow does not answer its links are missing, and that fails no run."""
    try:
        artifacts.create_result_artifacts(paths)
    except StoreError as error:
        get_run_logger().warning("this page has no links: %s", error)
