"""The Prefect tasks that compress: one for each method, run once for each candidate that uses it.

A candidate is a DVC stage of its own (winnow/steps/compress.py); its method lies in winnow/compression/METHOD.py.
"""

from __future__ import annotations

from prefect import Task, task

from tasks.stage_runner import RETRIED, StageResult, run_stage
from tasks.versioning.dvc_stages import CANDIDATE_PREFIX

DESCRIPTIONS = {
    "prune": "Remove whole channels and attention heads, then recover under the teacher.",
    "sparsify": "Set single weights to zero, then recover under the teacher.",
    "factorize": "Replace wide layers by two thin ones of low rank, then recover under the teacher.",
    "cluster": "Let each layer keep a few weight values, then recover under the teacher.",
    "quantize": "Turn weights and activations into int8.",
    "distill": "Train a smaller student, or the network itself, under the teacher.",
}


def compress(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Bring the stage of a candidate up to date."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


METHODS: dict[str, Task[..., StageResult]] = {
    method: task(name=method, task_run_name=f"{method} {{candidate}}", description=description, **RETRIED)(compress)
    for method, description in DESCRIPTIONS.items()
}
"""Prefect task of each method, by its name in params.yaml."""
