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


def tracking_address(paths: ProjectPaths) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the project's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or paths.mlflow_store


def registry_address(paths: ProjectPaths) -> str:
    """Return MLFLOW_REGISTRY_URI, or the tracking address."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or tracking_address(paths)


def is_local_store(paths: ProjectPaths) -> bool:
    """Return whether runs are tracked in the project's own store."""
    return tracking_address(paths) == paths.mlflow_store


def redact_password(text: str) -> str:
    """Return a text without the user and password parts of its URLs."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def store_exists(uri: str) -> bool:
    """Return False for a SQLite file that does not exist; servers are not contacted."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).is_file()


def read_runs(paths: ProjectPaths) -> dict[str, str]:
    """Return the cached digest -> run id of this address."""
    return TRACKED_RUNS.read(paths).get(redact_password(tracking_address(paths)), {})


def write_runs(paths: ProjectPaths, runs: dict[str, str]) -> None:
    """Replace the cached runs of this address, not of others."""
    with lock_tracking(paths):
        others = TRACKED_RUNS.read(paths)
        TRACKED_RUNS.write(paths, others | {redact_password(tracking_address(paths)): runs})
