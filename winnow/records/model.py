"""The base of every model in a record: frozen, without unknown keys, without infinite numbers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class RecordModel(BaseModel):
    """A frozen value."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def optional(default: Any = None) -> Any:
    """Return a field that is left out of the file where it has its default."""
    return Field(default=default, exclude_if=lambda value: value == default)


CurveRow = dict[str, float]
"""One epoch of a training: epoch, loss, and what its caller measured."""
