"""The outcome of the last promotion in this checkout: .winnow/promoted.json.

It holds the digest of the selection, the registry's address and the reasons, so that a `winnow run` with nothing to do
needs no request to MLflow. The file is a cache: without it the registry is asked again. Imports no mlflow.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Required

from typing_extensions import TypedDict

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import read_cache
from tasks.tracking import tracked_runs
from winnow.config import Config
from winnow.records import RECORD, record_digest, write_json
from winnow.refit.deployed_folder import REFIT

STATE_FILE = "promoted.json"


class PromotionState(TypedDict, total=False):
    """The content of promoted.json."""

    address: Required[str]
    model: Required[str]
    select: Required[str]
    champion: str | None
    reasons: list[str]
    waits_until: str


def is_up_to_date(places: ProjectPaths, config: Config) -> bool:
    """Return whether the last selection was promoted or rejected at this address, or waits for approval."""
    state, selection_folder = _recall(places), places.artifacts / "select"
    if (
        not state
        or not (selection_folder / RECORD).is_file()
        or not tracked_runs.store_exists(tracked_runs.registry_address(places))
    ):
        return False
    if (until := state.get("waits_until")) and not (config.promotion.approval and _is_open(until)):
        return False
    current = (_address(places), registered_model_name(config), selection_digest(places))
    return current == tuple(state.get(key) for key in ("address", "model", "select"))


def selection_digest(places: ProjectPaths) -> str:
    """Return a digest of the records of the last selection and refit."""
    refit = places.artifacts / REFIT
    digests = [record_digest(places.artifacts / "select"), record_digest(refit) if (refit / RECORD).is_file() else ""]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def is_awaiting_approval(places: ProjectPaths) -> bool:
    """Return whether the winner waited for approval when it was last checked; it may have been approved since."""
    return bool(_recall(places).get("waits_until"))


def read_reasons(places: ProjectPaths) -> list[str]:
    """Return the reasons of the last promotion."""
    return list(_recall(places).get("reasons", []))


def save(places: ProjectPaths, model: str, select: str, outcome: dict[str, Any]) -> None:
    """Write the outcome (`champion`, `reasons`, `waits_until`) for the selection with this digest."""
    where = {"address": _address(places), "model": model, "select": select}
    write_json(places.state_dir / STATE_FILE, {**where, **outcome})


def update(places: ProjectPaths, model: str, champion: str | None, reason: str) -> None:
    """Set champion and reason after an approval, a denial or a rollback."""
    state = _recall(places)
    if state and (state["address"], state["model"]) == (_address(places), model):
        changes = {"champion": champion, "reasons": [reason], "waits_until": ""}
        write_json(places.state_dir / STATE_FILE, {**state, **changes})


def clear(places: ProjectPaths) -> None:
    """Delete the file, so that the next promotion measures and asks again."""
    (places.state_dir / STATE_FILE).unlink(missing_ok=True)


def _recall(places: ProjectPaths) -> dict[str, Any]:
    """Return the content of the file; {} where it is missing or damaged."""
    return dict(read_cache(places.state_dir / STATE_FILE, PromotionState | None, None) or {})


def _is_open(until: str) -> bool:
    """Return whether a request is still open; an expired one has to be recorded by the next promotion."""
    return _now() < datetime.fromisoformat(until)


def _now() -> datetime:
    return datetime.now(UTC)


def _address(places: ProjectPaths) -> str:
    return tracked_runs.redact_password(tracked_runs.registry_address(places))
