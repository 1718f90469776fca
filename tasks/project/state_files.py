"""Typed reading of the JSON state files in .winnow.

    read_memory(path, dict[str, str], {})             for caches: {} where the file is missing or damaged
    read_kept(path, list[int], [], "start anew")      for data that cannot be recomputed: ArtifactError where damaged

Every file is validated against a type, so that damaged content never reaches the code that uses it. A file of another
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


class StepTimes(TypedDict):
    """The measurements that `python -m tasks` writes to .winnow/times for each step."""

    step: float
    """Seconds of the step itself."""
    process: float
    """Seconds since the start of its process."""
    memory_mb: float
    disk_mb: float


def read_cache(path: Path, kind: Any, otherwise: T) -> T:
    """Return the content of a file of type `kind`, or `otherwise` where it is missing or damaged; log a damaged one."""
    try:
        return _read(path, kind, otherwise)
    except ArtifactError as error:
        log.warning("%s; it is ignored and will be written again", error)
        return otherwise


def read_required(path: Path, kind: Any, otherwise: T, remedy: str) -> T:
    """Return the content of a file of type `kind`, or `otherwise` where it is missing.

    Raises ArtifactError with `remedy` where it is damaged.
    """
    try:
        return _read(path, kind, otherwise)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {remedy}") from error


def _read(path: Path, kind: Any, otherwise: T) -> T:
    try:
        content: T = TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return otherwise
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        location = ".".join(str(part) for part in problem["loc"]) or "the top"
        raise ArtifactError(f"{path} is damaged (at {location}: {problem['msg']})") from error
    return content
