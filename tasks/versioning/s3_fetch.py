"""Bring `data.path` up to what lies in S3 below `data.fetch`, before anybody asks what is stale."""

from __future__ import annotations

from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.versioning.s3_mirror import Mirrored, mirror
from winnow.config import Config


def fetch(places: ProjectPaths, config: Config) -> Mirrored | None:
    """None where there is nothing to fetch from. Raises DataError; what was fetched until then stays."""
    if config.data.fetch == "none":
        return None
    folder = places.root / config.data.path
    return mirror(config.data.fetch, folder, index_of(folder))


def index_of(folder: Path) -> Path:
    """What was fetched: beside the folder, since DVC hashes what is in it, and `make clean` leaves it."""
    return folder.with_name(f".{folder.name}.fetched.db")
