"""The Prefect task that evaluates on the test split and writes the page of the run (winnow/steps/report.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="report", task_run_name="report", **RETRIED)
def report(root: str, parent_run: str | None) -> StageResult:
    """Evaluate dense and the winner on the test split, once, and write the report."""
    return run_stage(root, "report", parent_run)
