"""The Prefect task that computes the teacher's embeddings (winnow/steps/embed.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="embed", task_run_name="embed", **RETRIED)
def embed(root: str, parent_run: str | None) -> StageResult:
    """Compute the embedding of every image by the teacher, where there is one."""
    return run_stage(root, "embed", parent_run)
