"""MLflow's address, and a cache of the runs it holds: .winnow/tracked.json, address -> {digest: run id}.

Without the cache the same runs are found by their digests. Imports no mlflow, so that a `winnow run` with nothing to do
starts fast.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.project.run_lock import lock_tracking
from tasks.project.state_files import TRACKED_RUNS

SQLITE = "sqlite:///"


def tracking_address(places: ProjectPaths) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the project's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or places.mlflow_store


def registry_address(places: ProjectPaths) -> str:
    """Return MLFLOW_REGISTRY_URI, or the tracking address."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or tracking_address(places)


def is_local_store(places: ProjectPaths) -> bool:
    """Return whether runs are tracked in the project's own store."""
    return tracking_address(places) == places.mlflow_store


def redact_password(text: str) -> str:
    """Return a text without the user and password parts of its URLs."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def store_exists(uri: str) -> bool:
    """Return False for a SQLite file that does not exist; servers are not contacted."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).is_file()


def read_runs(places: ProjectPaths) -> dict[str, str]:
    """Return the cached digest -> run id of this address."""
    return TRACKED_RUNS.read(places).get(redact_password(tracking_address(places)), {})


def write_runs(places: ProjectPaths, runs: dict[str, str]) -> None:
    """Replace the cached runs of this address, not of others."""
    with lock_tracking(places):
        others = TRACKED_RUNS.read(places)
        TRACKED_RUNS.write(places, others | {redact_password(tracking_address(places)): runs})
