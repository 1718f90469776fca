"""The flow: every stage of the tree as a task, in the order of its needs, then promotion.

Stages that DVC calls up to date are drawn and not run. One stage at a time: two trainings on one machine only slow
each other down, and DVC allows one writer. Results are small JSON; the artifacts stay where DVC put them.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.summary import candidate_rows, promotion_lines
from tasks import stages, tracking, versioning
from tasks.settings import Places
from winnow.config import load_config
from winnow.errors import WinnowError


@flow(
    name="winnow",
    task_runner=ThreadPoolTaskRunner(max_workers=1),  # type: ignore[arg-type]
    validate_parameters=False,
    persist_result=False,
)
def pipeline(root: str = ".") -> list[dict[str, Any]]:
    """Bring all stages up to date, track them, promote the winner; returns what each stage did and its seconds."""
    places = Places(Path(root).resolve())
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_no_traceback)
    config = load_config(places.root / "params.yaml")
    stale = versioning.stale(places.root, config)
    parent = tracking.open_execution(places, config, why="; ".join(f"{k}: {v[0]}" for k, v in stale.items())[:1000])
    try:
        done = _run_stages(places, config, stale, parent)
        tracking.track(places, config, parent)
        done.append(stages.promote_winner(str(places.root)))
    except BaseException:
        tracking.close_execution(places, parent, ok=False)
        raise
    tracking.close_execution(places, parent, ok=True)
    _show_on_run_page(places)
    return done


def _run_stages(places: Places, config: Any, stale: dict[str, list[str]], parent: str) -> list[dict[str, Any]]:
    futures: dict[str, PrefectFuture[dict[str, Any]]] = {}
    for stage in versioning.stages(config):
        needs = [futures[need] for need in stage.needs]
        if stage.name in stale:
            future = stages.run_stage.submit(str(places.root), stage.name, parent, return_state=False, wait_for=needs)
        else:
            future = stages.keep_stage.submit(stage.name, return_state=False, wait_for=needs)
        futures[stage.name] = future
    # The first failure in the graph's order is the cause; what depends on it never started.
    return [future.result() for future in futures.values()]


def _no_traceback(record: logging.LogRecord) -> bool:
    """Drop Prefect's copy of an error that is the user's to mend: the command line says it once, in full."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, WinnowError) or bool(os.environ.get("WINNOW_TRACEBACK"))


def _show_on_run_page(places: Places) -> None:
    """The table and the verdict as Prefect artifacts, on the run's page."""
    create_table_artifact(key="candidates", table=candidate_rows(places), description="Candidates of this run")
    create_markdown_artifact(key="promotion", markdown="\n".join(f"- {line}" for line in promotion_lines(places)))
