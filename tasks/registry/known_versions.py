"""Keep which version an alias names while the files of the project's own MLflow store are unchanged.

To import MLflow takes two seconds, more than a prediction. Versions on a server are always looked up.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import KNOWN_VERSIONS, Fingerprint, KnownVersion, file_fingerprint
from tasks.tracking import tracking_store

DATABASE_SUFFIXES = ("", "-wal", "-journal")
CHANGED_RECENTLY = 1.0
"""Seconds during which a second change of a file may leave its modification time as it is."""


def store_fingerprint(paths: ProjectPaths) -> list[Fingerprint]:
    """Return size, modification time and inode of the files of the project's own store; [] for any other store."""
    if tracking_store.registry_address(paths) != paths.mlflow_store:
        return []
    database = paths.mlflow_store.removeprefix(tracking_store.SQLITE)
    prints = [found for suffix in DATABASE_SUFFIXES if (found := file_fingerprint(Path(database + suffix)))]
    if any(time.time() - changed_ns / 1e9 < CHANGED_RECENTLY for _, changed_ns, _ in prints):
        return []
    return prints


def read_version(paths: ProjectPaths, model: str, which: str) -> KnownVersion | None:
    """Return the version with this alias or number, as it was looked up in the store as it is now; else None."""
    known = KNOWN_VERSIONS.read(paths)
    if not known["store"] or known["store"] != store_fingerprint(paths):
        return None
    return known["versions"].get(f"{model}/{which}")


def save_version(paths: ProjectPaths, store: list[Fingerprint], model: str, which: str, version: KnownVersion) -> None:
    """Save a version that was looked up. `store`: the fingerprint just before. Without space or rights do nothing."""
    if not store:
        return
    known = KNOWN_VERSIONS.read(paths)
    others = known["versions"] if known["store"] == store else {}
    with contextlib.suppress(OSError):  # it is a cache: the command that looks the version up goes on
        KNOWN_VERSIONS.write(paths, {"store": store, "versions": {**others, f"{model}/{which}": version}})
