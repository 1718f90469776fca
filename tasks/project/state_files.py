"""JSON files in .winnow that only remember: what cannot be read is passed over, and made anew.

    read_memory(path, dict[str, str], {})             what the file holds; {} where it is missing or damaged
    read_kept(path, list[int], [], "start anew")      the same for what cannot be made anew: ArtifactError where damaged

Every file is checked against its type, so that a damaged one never reaches the code that uses it. A file of another
version of winnow counts as damaged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from winnow.errors import ArtifactError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Times(TypedDict):
    """What `python -m tasks` leaves of a step in .winnow/times."""

    step: float
    """Seconds of the step alone."""
    process: float
    """Seconds since its process began."""
    memory_mb: float
    disk_mb: float


def read_memory(path: Path, kind: Any, otherwise: T) -> T:
    """Return what a file of type `kind` holds; `otherwise` where it is missing or damaged, which is logged."""
    try:
        return _read(path, kind, otherwise)
    except ArtifactError as error:
        log.warning("%s; it is passed over, and written anew", error)
        return otherwise


def read_kept(path: Path, kind: Any, otherwise: T, remedy: str) -> T:
    """Return what a file of type `kind` holds; `otherwise` where it is missing.

    Raises ArtifactError with `remedy` where it is damaged.
    """
    try:
        return _read(path, kind, otherwise)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {remedy}") from error


def _read(path: Path, kind: Any, otherwise: T) -> T:
    try:
        found: T = TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return otherwise
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        raise ArtifactError(f"{path} is damaged (at {where}: {first['msg']})") from error
    return found
