"""Mirror the S3 prefix of `data.fetch` to `data.path`, before DVC checks what is stale."""

from __future__ import annotations

from pathlib import Path

from tasks.project.paths import ProjectPaths
from tasks.versioning.s3_mirror import MirrorResult, mirror
from winnow.config import Config


def fetch(paths: ProjectPaths, config: Config) -> MirrorResult | None:
    """Mirror data.fetch; return what was done, or None where data.fetch is none.

    Raises DataError; objects that were fetched before the error stay.
    """
    if config.data.fetch == "none":
        return None
    folder = paths.root / config.data.path
    return mirror(config.data.fetch, folder, index_path(folder))


def index_path(folder: Path) -> Path:
    """Return the path of the index of fetched objects: beside the folder, whose content DVC hashes."""
    return folder.with_name(f".{folder.name}.fetched.db")
