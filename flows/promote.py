"""The flow that promotes alone: register the winner of the last run and let it challenge the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from tasks import stages


@flow(name="winnow-promote", validate_parameters=False, persist_result=False)
def promote(root: str = ".") -> dict[str, Any]:
    """Returns what happened, with the reason."""
    return stages.promote_winner(str(Path(root).resolve()))
