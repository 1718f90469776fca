"""The Prefect task that fine-tunes on the few labels (winnow/steps/finetune.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="finetune", task_run_name="finetune", **RETRIED)
def finetune(root: str, parent_run: str | None) -> StageResult:
    """Fine-tune on the label budget; leaves `dense`, the root of the tree of candidates."""
    return run_stage(root, "finetune", parent_run)
