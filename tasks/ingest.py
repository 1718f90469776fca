"""The Prefect task that versions the data: images become one array of pixels (winnow/steps/ingest.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="ingest", task_run_name="ingest", **RETRIED)
def ingest(root: str, parent_run: str | None) -> StageResult:
    """Read, decode and split the images; DVC's hash of the result is the data version."""
    return run_stage(root, "ingest", parent_run)
