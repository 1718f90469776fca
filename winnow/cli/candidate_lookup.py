"""A candidate that was made, by the name that a person typed."""

from __future__ import annotations

from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.config.candidates import NAME
from winnow.errors import ConfigError


def folder_of(places: ProjectPaths, name: str, file: str) -> Path:
    """Its folder; `file` has to be in it. Raises ConfigError, which lists the names that there are."""
    candidates = places.artifacts / "candidates"
    there = sorted(path.parent.name for path in candidates.glob(f"*/{file}") if NAME.fullmatch(path.parent.name))
    if name in there:
        return candidates / name
    known = f"valid: {', '.join(there)}" if there else "winnow run makes them first"
    raise ConfigError(f"{name}: no candidate of that name has a {file} in {candidates}; {known}")
