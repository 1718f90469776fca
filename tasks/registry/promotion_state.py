"""The outcome of the last promotion in this checkout: .winnow/promoted.json.

It holds the digest of the selection, the registry's address and the reasons, so that a `winnow run` with nothing to do
needs no request to MLflow. The file is a cache: without it the registry is asked again. Imports no mlflow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import PROMOTED, PromotionState
from tasks.tracking import tracking_store
from winnow.config import Config
from winnow.records import RECORD, record_digest
from winnow.refit.deployed_folder import REFIT


def is_up_to_date(paths: ProjectPaths, config: Config) -> bool:
    """Return whether the last selection was promoted or rejected at this address, or waits for approval."""
    state, selection_folder = PROMOTED.read(paths), paths.artifacts / "select"
    store = tracking_store.registry_address(paths)
    if not state or not (selection_folder / RECORD).is_file() or not tracking_store.store_exists(store):
        return False
    until = state["waits_until"]  # a request that has expired has to be recorded by the next promotion
    if until and not (config.promotion.approval and _now() < datetime.fromisoformat(until)):
        return False
    current = (_address(paths), registered_model_name(config), _selection_digest(paths))
    return current == (state["address"], state["model"], state["select"])


def _selection_digest(paths: ProjectPaths) -> str:
    """Return a digest of the records of the last selection and refit."""
    refit = paths.artifacts / REFIT
    digests = [record_digest(paths.artifacts / "select"), record_digest(refit) if (refit / RECORD).is_file() else ""]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def is_awaiting_approval(paths: ProjectPaths) -> bool:
    """Return whether the winner waited for approval when it was last checked; it may have been approved since."""
    state = PROMOTED.read(paths)
    return bool(state and state["waits_until"])


def read_reasons(paths: ProjectPaths) -> list[str]:
    """Return the reasons of the last promotion."""
    state = PROMOTED.read(paths)
    return state["reasons"] if state else []


def save(paths: ProjectPaths, model: str, sha256: str | None, reasons: Sequence[str], waits_until: str) -> None:
    """Write the outcome of promoting the last selection, whose winner is the file with this digest."""
    state: PromotionState = {
        "address": _address(paths),
        "model": model,
        "select": _selection_digest(paths),
        "sha256": sha256,
        "reasons": list(reasons),
        "waits_until": waits_until,
    }
    PROMOTED.write(paths, state)


def update(paths: ProjectPaths, model: str, reason: str) -> None:
    """Set the reason after an approval, a denial or a rollback; nothing waits for approval any more."""
    state = PROMOTED.read(paths)
    if state and (state["address"], state["model"]) == (_address(paths), model):
        PROMOTED.write(paths, {**state, "reasons": [reason], "waits_until": ""})


def clear(paths: ProjectPaths) -> None:
    """Delete the file, so that the next promotion measures and asks again."""
    PROMOTED.delete(paths)


def _now() -> datetime:
    return datetime.now(UTC)


def _address(paths: ProjectPaths) -> str:
    return tracking_store.redact_password(tracking_store.registry_address(paths))
