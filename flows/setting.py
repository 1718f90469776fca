"""`-S key=value`: set existing keys of params.yaml, keep its comments, check the whole, show what changed.

Values are YAML, so that `-S data.path=/my photos/2024, summer=hot` and `-S finetune.seeds=[0,1]` mean what they say.
Nothing is written unless the result is sound.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import MutableMapping
from typing import Any

import yaml

from tasks.settings import Places
from winnow.config import check_config
from winnow.errors import ConfigError


def set_keys(places: Places, assignments: list[str]) -> None:
    """Apply `dotted.key=value` assignments to params.yaml and print the difference."""
    from ruamel.yaml import YAML

    path = places.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 1000
    document = editor.load(before)
    for assignment in assignments:
        _assign(document, assignment)
    buffer = io.StringIO()
    editor.dump(document, buffer)
    after = buffer.getvalue()
    check_config(yaml.safe_load(after), "params.yaml with these settings")
    if after == before:
        return
    temporary = path.with_name(".params.yaml.tmp")
    temporary.write_text(after, encoding="utf-8")
    temporary.replace(path)
    changed = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "params.yaml", n=0, lineterm="")
    print("\n".join(line for line in changed if not line.startswith(("@@", "---"))))  # noqa: T201


def _assign(document: Any, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"-S {assignment}: expected key=value, as in -S data.source=folder")
    *above, last = key.strip().split(".")
    at = document
    for depth, part in enumerate([*above, last]):
        if not isinstance(at, MutableMapping) or part not in at:
            known = ", ".join(map(str, at)) if isinstance(at, MutableMapping) else "nothing below it"
            where = ".".join([*above, last][:depth]) or "params.yaml"
            raise ConfigError(f"-S {assignment}: {where} has no key {part!r}; it has {known}")
        if depth < len(above):
            at = at[part]
    at[last] = _value(text, assignment)


def _value(text: str, assignment: str) -> Any:
    """YAML, but a value that only looks broken because it is a path stays text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, dict):
        # `a: b` is a legal folder name and nobody sets a whole section this way.
        return value if text.strip().startswith("{") else text
    if value is None and text.strip() not in ("null", "~"):
        raise ConfigError(f"-S {assignment}: the value is empty")
    return value
