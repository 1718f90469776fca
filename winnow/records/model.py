"""The base of every model in a record: frozen, without unknown keys, without infinite numbers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class RecordModel(BaseModel):
    """A frozen value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def optional(default: Any = None) -> Any:
    """Return a field that is left out of the file where it has its default."""
    return Field(default=default, exclude_if=lambda value: value == default)


def describe_first_error(error: ValidationError) -> str:
    """Return where the first invalid key is and what is wrong with it: "at metrics.x: Input should be ..."."""
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    return f"at {location or 'the top'}: {first['msg']}"


CurveRow = dict[str, float]
"""One epoch of a training: epoch, loss, and what its caller measured."""
