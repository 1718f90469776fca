"""The Prefect tasks that compress: one for each method, run once for each candidate that uses it.

A candidate is a DVC stage of its own (winnow/steps/compress.py); its method is in winnow/compression/METHOD.py.
"""

from __future__ import annotations

import inspect

from prefect import Task, task

from tasks.stage_runner import RETRIED, StageResult, run_stage
from tasks.versioning.dvc_stages import CANDIDATE_PREFIX
from winnow.config import METHOD_SETTINGS


def compress(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Bring the stage of a candidate up to date."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


METHODS: dict[str, Task[..., StageResult]] = {
    method: task(name=method, task_run_name=f"{method} {{candidate}}", description=inspect.getdoc(settings), **RETRIED)(
        compress
    )
    for method, settings in METHOD_SETTINGS.items()
}
"""Prefect task of each method, by its name in params.yaml; its description is that of the settings."""
