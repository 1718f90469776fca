"""The flow: every stage of the tree as a task, in the order of its needs, then promotion.

Stages that DVC calls up to date are drawn and not run. One stage at a time: two trainings on one machine only slow
each other down, and DVC allows one writer. Results are small JSON; the artifacts stay where DVC put them.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, runtime
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts
from flows.promote import show_form
from flows.runtime import without_tracebacks, working
from tasks import stages
from tasks.project.paths import ProjectPaths, check_files
from tasks.registry import promotion_state
from tasks.tracking import mlflow_runs
from tasks.tracking.mlflow_client import StoreError
from tasks.versioning import dvc_stages, integrity, s3_fetch
from winnow.config import Config, load_config


@flow(
    name="winnow",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
    validate_parameters=False,
    persist_result=True,  # so that nothing puts a completed run back
    result_serializer="json",
)
def pipeline(root: str = ".", retries: int = 0) -> list[dict[str, Any]]:
    """Bring all stages up to date, track them, promote the winner; returns what each stage did and its seconds.

    `retries`: further tries of a step that was killed, or that MLflow did not answer.
    """
    without_tracebacks()
    with working(root) as places:
        return _bring_up_to_date(places, retries)


def _bring_up_to_date(places: ProjectPaths, retries: int) -> list[dict[str, Any]]:
    config = load_config(places.root / "params.yaml")
    check_files(config, places.root)
    if runtime.deployment.id and (came := s3_fetch.fetch(places, config)):
        get_run_logger().info("fetched %d new or changed objects, %d are gone", came.fetched, came.removed)
    if damaged := integrity.damaged(places):
        get_run_logger().warning("%s, and will be made again", integrity.told(places, damaged))
        integrity.repair(places, damaged)
    stale = dvc_stages.stale(places.root, config)
    done: list[dict[str, Any]] = []
    if stale or not mlflow_runs.is_complete(places, config):
        done = _execute(places, config, stale, retries)
    if not promotion_state.is_settled(places, config):
        done.append(stages.promote_winner.with_options(retries=retries)(str(places.root)))
        if done[-1]["waits"] and os.environ.get("PREFECT_API_URL"):
            show_form(config)
    if done:
        _show(places)
    else:
        get_run_logger().info("Nothing has changed: no step runs.")
    return done


def _execute(places: ProjectPaths, config: Config, stale: dict[str, list[str]], retries: int) -> list[dict[str, Any]]:
    """The stages, in a run of MLflow's that is closed whatever happens."""
    why = "; ".join(f"{stage}: {reasons[0]}" for stage, reasons in stale.items())[:1000]
    parent: str = stages.open_run.with_options(retries=retries)(str(places.root), why)
    try:
        done = _run_stages(places, config, stale, parent, retries)
        stages.track_run.with_options(retries=retries)(str(places.root), parent)
    except BaseException as error:
        if not isinstance(error, Exception):
            stages.stop_running(parent)
        mlflow_runs.close_execution(places, parent, ok=False)
        raise
    return done


def _show(places: ProjectPaths) -> None:
    """The run's page; without MLflow its links are missing, and that fails no run."""
    try:
        artifacts.results(places)
    except StoreError as error:
        get_run_logger().warning("this page has no links: %s", error)


def _run_stages(
    places: ProjectPaths, config: Config, stale: dict[str, list[str]], parent: str, retries: int
) -> list[dict[str, Any]]:
    run_stage = stages.run_stage.with_options(retries=retries)
    futures: dict[str, PrefectFuture[dict[str, Any]]] = {}
    for stage in dvc_stages.stages(config):
        needs = [futures[need] for need in stage.needs]
        if stage.name in stale:
            future = run_stage.submit(str(places.root), stage.name, parent, return_state=False, wait_for=needs)
        else:
            future = stages.keep_stage.submit(stage.name, return_state=False, wait_for=needs)
        futures[stage.name] = future
    # The first failure in the graph's order is the cause; what depends on it never started.
    return [future.result() for future in futures.values()]
