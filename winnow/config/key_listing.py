"""List the keys that a section of params.yaml may have, including those that the file leaves at their defaults."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from winnow.config import Config
from winnow.config.pretrain import resolve_method
from winnow.config.section import Section


def section_keys(path: Sequence[str], raw: Any) -> tuple[str, ...]:
    """Return the keys of the section at `path` in a file's contents `raw`; () where names are free (candidates)."""
    models: list[Any] = [Config]
    value = resolve_method(raw)
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
        types_below = (inner for model in models for inner in _types_below(model, key))
        models = [model for model in types_below if _matches_method(model, value)]
    names = (name for model in models if _is_section(model) for name in _key_names(model))
    return tuple(dict.fromkeys(names))


def _types_below(model: Any, key: str) -> Iterator[Any]:
    """Yield the types that a key may have in a section, or in a mapping of free names."""
    if _is_section(model):
        for name, field in model.model_fields.items():
            if key in (name, field.alias):
                yield from _union_members(field.annotation)
    elif get_origin(model) is dict:
        yield from _union_members(get_args(model)[1])


def _union_members(annotation: Any) -> Iterator[Any]:
    """Yield each type of an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _union_members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _union_members(member)
    else:
        yield annotation


def _is_section(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, Section)


def _matches_method(model: Any, value: Any) -> bool:
    """Return whether a section belongs to the method that the file names, or depends on none."""
    if not _is_section(model) or not isinstance(value, Mapping) or "method" not in model.model_fields:
        return True
    return value.get("method") in get_args(model.model_fields["method"].annotation)


def _key_names(model: type[Section]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name
