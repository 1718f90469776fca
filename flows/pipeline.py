"""The flow: every stage of the tree as a task, in the order of its needs, then promotion.

Stages that DVC calls up to date are drawn and not run. One stage at a time: two trainings on one machine only slow
each other down, and DVC allows one writer. Results are small JSON; the artifacts stay where DVC put them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import psutil
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows import STOPPED
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
    except BaseException as error:
        was_stopped = not isinstance(error, Exception)  # Ctrl-C, SIGTERM, a closed terminal
        if was_stopped:
            stages.stop_running()
        tracking.close_execution(places, parent, ok=False)
        if was_stopped and not os.environ.get("PREFECT_API_URL"):
            _leave_at_once()
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


def _leave_at_once() -> None:
    """Exit without a report to Prefect's temporary server: Ctrl-C ended it too, and the report would wait for it."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    psutil.wait_procs(children, timeout=5)
    sys.stdout.flush()
    sys.stderr.write(f"{STOPPED}\n")
    sys.stderr.flush()
    os._exit(130)


def _no_traceback(record: logging.LogRecord) -> bool:
    """Drop Prefect's copies of an error that is the user's to mend: the command line says it once, in full."""
    if os.environ.get("WINNOW_TRACEBACK"):
        return True
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, WinnowError) and "NotReady(" not in record.getMessage()


def _show_on_run_page(places: Places) -> None:
    """The table and the verdict as Prefect artifacts, on the run's page."""
    create_table_artifact(key="candidates", table=candidate_rows(places), description="Candidates of this run")
    create_markdown_artifact(key="promotion", markdown="\n".join(f"- {line}" for line in promotion_lines(places)))
