"""The Prefect task that trains the winner once more on training and validation labels (winnow/steps/refit.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="refit", task_run_name="refit", **RETRIED)
def refit(root: str, parent_run: str | None) -> StageResult:
    """Refit the winner if `refit:` requires it, and check that its predictions stay similar."""
    return run_stage(root, "refit", parent_run)
