"""What became of the last selection, as this checkout remembers it: .winnow/promoted.json.

For which selection, at which address, with which reasons: so that an unchanged `winnow run` asks nobody and can still
say what serves. It is only a memory: whoever loses it asks the registry. No mlflow here.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Required

from typing_extensions import TypedDict

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.project.state_files import read_memory
from tasks.tracking import tracked_runs
from winnow.config import Config
from winnow.records import RECORD, record_digest, write_json
from winnow.refit.deployed_folder import REFIT

PROMOTED = "promoted.json"


class Settled(TypedDict, total=False):
    """What the file holds; nothing where it is missing."""

    address: Required[str]
    model: Required[str]
    select: Required[str]
    champion: str | None
    reasons: list[str]
    waits_until: str


def is_settled(places: ProjectPaths, config: Config) -> bool:
    """Whether the last selection was promoted or refused at this address, or waits for the person that it asked."""
    found, select = _recall(places), places.artifacts / "select"
    if (
        not found
        or not (select / RECORD).is_file()
        or not tracked_runs.store_exists(tracked_runs.registry_address(places))
    ):
        return False
    if (until := found.get("waits_until")) and not (config.promotion.approval and _is_open(until)):
        return False
    wanted = (_address(places), registered_model_name(config), chosen_digest(places))
    return wanted == tuple(found.get(key) for key in ("address", "model", "select"))


def chosen_digest(places: ProjectPaths) -> str:
    """Return a digest of the last selection and of the refit of its winner."""
    refit = places.artifacts / REFIT
    digests = [record_digest(places.artifacts / "select"), record_digest(refit) if (refit / RECORD).is_file() else ""]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def waits(places: ProjectPaths) -> bool:
    """Whether it waited for a person when it was last seen; it may have been answered elsewhere since."""
    return bool(_recall(places).get("waits_until"))


def reasons(places: ProjectPaths) -> list[str]:
    """Why what serves does, and the last winner does or does not."""
    return list(_recall(places).get("reasons", []))


def save(places: ProjectPaths, model: str, select: str, outcome: dict[str, Any]) -> None:
    """Replace what was known by `outcome` of the selection with this digest: `champion`, `reasons`, `waits_until`."""
    where = {"address": _address(places), "model": model, "select": select}
    write_json(places.state_dir / PROMOTED, {**where, **outcome})


def update(places: ProjectPaths, model: str, champion: str | None, reason: str) -> None:
    """A person has acted since: another champion, or a word on the one that waited."""
    found = _recall(places)
    if found and (found["address"], found["model"]) == (_address(places), model):
        changed = {"champion": champion, "reasons": [reason], "waits_until": ""}
        write_json(places.state_dir / PROMOTED, {**found, **changed})


def clear(places: ProjectPaths) -> None:
    """What was settled no longer is: the next promotion measures and asks anew."""
    (places.state_dir / PROMOTED).unlink(missing_ok=True)


def _recall(places: ProjectPaths) -> dict[str, Any]:
    """Nothing where the file is missing or damaged."""
    return dict(read_memory(places.state_dir / PROMOTED, Settled | None, None) or {})


def _is_open(until: str) -> bool:
    """Whether a question may still be answered; once its time is over somebody has to write that down."""
    return _now() < datetime.fromisoformat(until)


def _now() -> datetime:
    return datetime.now(UTC)


def _address(places: ProjectPaths) -> str:
    return tracked_runs.without_password(tracked_runs.registry_address(places))
