"""The Prefect task that measures every candidate on real runtimes (winnow/steps/benchmark.py)."""

from __future__ import annotations

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage


@task(name="benchmark", task_run_name="benchmark", **RETRIED)
def benchmark(root: str, parent_run: str | None) -> StageResult:
    """Time the files of all candidates on this machine, in each runtime, precision and batch."""
    return run_stage(root, "benchmark", parent_run)
