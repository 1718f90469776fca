"""The Prefect task that chooses the candidate that may serve (winnow/steps/select.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="select", task_run_name="select", **RETRIED)
def select(root: str, parent_run: str | None) -> StageResult:
    """Apply the gates, compute the Pareto front and choose the winner."""
    return run_stage(root, "select", parent_run)
