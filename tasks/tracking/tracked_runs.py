"""Which MLflow is meant, and what it is known to hold: .winnow/tracked.json, (address, digest) -> run.

It is only a memory: whoever loses it finds the same runs by their digests. No mlflow here, so that an unchanged
`winnow run` need not import it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.project.run_lock import memory_alone
from tasks.project.state_files import read_memory
from winnow.records import write_json

MEMORY = "tracked.json"
SQLITE = "sqlite:///"


def address(places: ProjectPaths) -> str:
    """MLFLOW_TRACKING_URI, or the project's own store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or places.mlflow_store


def registry_address(places: ProjectPaths) -> str:
    """Where models are registered: the same place, unless MLFLOW_REGISTRY_URI says otherwise."""
    return os.environ.get("MLFLOW_REGISTRY_URI") or address(places)


def is_own(places: ProjectPaths) -> bool:
    """Whether runs go to the project's own store."""
    return address(places) == places.mlflow_store


def without_password(text: str) -> str:
    """An address, or a message that holds some, for people and files."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def store_exists(where: str) -> bool:
    """False where the address is a file that is not there; a server is not asked."""
    return not where.startswith(SQLITE) or Path(where.removeprefix(SQLITE)).is_file()


def recall(places: ProjectPaths) -> dict[str, str]:
    """Digest -> run, as remembered for this address."""
    return _read(places).get(without_password(address(places)), {})


def save(places: ProjectPaths, runs: dict[str, str]) -> None:
    """Replace what is remembered for this address; other addresses keep theirs."""
    with memory_alone(places):
        write_json(places.state_dir / MEMORY, _read(places) | {without_password(address(places)): runs})


def _read(places: ProjectPaths) -> dict[str, dict[str, str]]:
    """Nothing where the file is missing or damaged: then MLflow is asked."""
    return read_memory(places.state_dir / MEMORY, dict[str, dict[str, str]], {})
