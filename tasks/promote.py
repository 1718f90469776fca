"""The Prefect task that promotes: the winner challenges the champion (tasks/registry/promotion.py)."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import task

from tasks.model_events import emit_promoted
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import promotion
from tasks.stage_runner import RETRIED, StageResult
from winnow.config import load_config


class Promotion(StageResult):
    """The outcome of a promotion."""

    reasons: list[str]
    waits: bool
    """True if the challenger needs approval."""


@task(name="promote", **RETRIED)
def promote(root: str) -> Promotion:
    """Register the winner and let it challenge the champion."""
    paths, started = ProjectPaths(Path(root)), time.monotonic()
    config = load_config(paths.root / "params.yaml")
    result = promotion.promote(paths, config)
    emit_promoted(result, registered_model_name(config))
    return {
        "stage": "promote",
        "outcome": "ran",
        "seconds": time.monotonic() - started,
        "own": 0.0,
        "reasons": list(result.reasons),
        "waits": result.waits is not None,
    }
