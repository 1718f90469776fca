"""Which keys a section of params.yaml may have, those included that the file leaves at their defaults."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from winnow.config import Config
from winnow.config.section import Section


def keys_below(path: Sequence[str], raw: Any) -> tuple[str, ...]:
    """Keys of the section at `path` in a file's contents `raw`; () where names are free, as below candidates."""
    kinds: list[Any] = [Config]
    at = raw
    for part in path:
        inner = (kind for each in kinds for kind in _inner(each, part))
        at = at.get(part) if isinstance(at, Mapping) else None
        kinds = [kind for kind in inner if _is_meant(kind, at)]
    found = (name for kind in kinds if _is_section(kind) for name in _names(kind))
    return tuple(dict.fromkeys(found))


def _inner(kind: Any, part: str) -> Iterator[Any]:
    """What may stand below `part` in a section, or in a mapping of free names."""
    if _is_section(kind):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                yield from _plain(field.annotation)
    elif get_origin(kind) is dict:
        yield from _plain(get_args(kind)[1])


def _plain(annotation: Any) -> Iterator[Any]:
    """The types of an annotation, each by itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _plain(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _plain(part)
    else:
        yield annotation


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _is_meant(kind: Any, at: Any) -> bool:
    """Whether a section is the one of the method that the file names."""
    if not _is_section(kind) or not isinstance(at, Mapping) or "method" not in kind.model_fields:
        return True
    return at.get("method") in get_args(kind.model_fields["method"].annotation)


def _names(kind: type[Section]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield field.alias or name
