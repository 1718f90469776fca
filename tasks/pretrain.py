"""The Prefect task that learns without labels (winnow/steps/pretrain.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="pretrain", task_run_name="pretrain", **RETRIED)
def pretrain(root: str, parent_run: str | None) -> StageResult:
    """Train a backbone on all training images without their labels."""
    return run_stage(root, "pretrain", parent_run)
