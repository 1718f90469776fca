"""Find a candidate's folder by the name that the user typed."""

from __future__ import annotations

from pathlib import Path

from tasks.project.paths import ProjectPaths
from winnow.config.candidate_names import is_candidate_name
from winnow.errors import ConfigError


def candidate_folder(paths: ProjectPaths, name: str, file: str) -> Path:
    """Return the candidate's folder, which must contain `file`. Raises ConfigError, which lists the valid names."""
    candidates = paths.artifacts / "candidates"
    names = sorted(path.parent.name for path in candidates.glob(f"*/{file}") if is_candidate_name(path.parent.name))
    if name in names:
        return candidates / name
    hint = f"valid: {', '.join(names)}" if names else "winnow run makes them first"
    raise ConfigError(f"{name}: no candidate of that name has a {file} in {candidates}; {hint}")
