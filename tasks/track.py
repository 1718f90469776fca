"""The Prefect tasks that open an execution's run in MLflow, and complete it from the records of all steps."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from tasks.project.paths import ProjectPaths
from tasks.stage_runner import RETRIED
from tasks.tracking import mlflow_runs, tracked_runs
from winnow.config import load_config


@task(name="open run", **RETRIED)
def open_run(root: str, why: str) -> str:
    """Open the execution's run in MLflow and return its id."""
    paths = ProjectPaths(Path(root))
    return mlflow_runs.open_execution(paths, load_config(paths.root / "params.yaml"), why)


@task(name="track", **RETRIED)
def track(root: str, parent_run: str) -> str:
    """Complete MLflow from the records, close the execution's run, and return a line for the log."""
    paths = ProjectPaths(Path(root))
    line = tracked_runs.track(paths, load_config(paths.root / "params.yaml"), parent_run)
    mlflow_runs.close_execution(paths, parent_run, ok=True)
    return line
