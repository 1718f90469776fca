"""The Prefect tasks that compress: one for each method, run once for each candidate that uses it.

A candidate is a DVC stage of its own (winnow/steps/compress.py); its method lies in winnow/compression/METHOD.py.
"""

from __future__ import annotations

from typing import Any

from prefect import task

from tasks.stage_runner import RETRIED, StageResult, run_stage
from tasks.versioning.dvc_stages import CANDIDATE_PREFIX


@task(name="prune", task_run_name="prune {candidate}", **RETRIED)
def prune(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Remove whole channels and attention heads, then recover under the teacher."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


@task(name="sparsify", task_run_name="sparsify {candidate}", **RETRIED)
def sparsify(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Set single weights to zero, then recover under the teacher."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


@task(name="factorize", task_run_name="factorize {candidate}", **RETRIED)
def factorize(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Replace wide layers by two thin ones of low rank, then recover under the teacher."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


@task(name="cluster", task_run_name="cluster {candidate}", **RETRIED)
def cluster(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Let each layer keep a few weight values, then recover under the teacher."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


@task(name="quantize", task_run_name="quantize {candidate}", **RETRIED)
def quantize(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Turn weights and activations into int8."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


@task(name="distill", task_run_name="distill {candidate}", **RETRIED)
def distill(root: str, candidate: str, parent_run: str | None) -> StageResult:
    """Train a smaller student, or the network itself, under the teacher."""
    return run_stage(root, CANDIDATE_PREFIX + candidate, parent_run)


METHODS: dict[str, Any] = {task.name: task for task in (prune, sparsify, factorize, cluster, quantize, distill)}
"""Prefect task of each method, by its name in params.yaml."""
