"""Presets: files of the package that change several keys of params.yaml at once, as `winnow run --full` does.

A preset has two parts. `from` holds the shipped values that it replaces: a key that the user has set to another value
stays. `to` holds the new values; `null` removes a key. A mapping with a `method` is a candidate, and is added where the
file has none of that name. Any other mapping is merged where the file has a mapping, and ignored elsewhere: a candidate
that was removed does not come back in part.

`controls` names, for each candidate that is a control, the one that it controls: its structure and recovery are those
of that candidate, in all that the preset does not set for the control itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

FULL = "full.yaml"
"""The preset of `--full`, in tasks/project/templates/."""


def merge_preset(document: MutableMapping[str, Any], preset: Mapping[str, Any]) -> None:
    """Change `document`, the settings of a project, in place by a preset."""
    present = set(document.get("candidates") or ())
    _merge(document, preset["from"], preset["to"])
    candidates = document.get("candidates")
    if isinstance(candidates, MutableMapping):
        for name, model in preset.get("controls", {}).items():
            if name in candidates and name not in present:
                _match_control(candidates, name, model)


def _merge(document: MutableMapping[str, Any], before: Any, after: Mapping[str, Any]) -> None:
    before = before if isinstance(before, Mapping) else {}
    for key, value in after.items():
        present = document.get(key)
        if isinstance(value, Mapping):
            if "method" in value and key not in document:
                document[key] = copy.deepcopy(value)
            elif isinstance(present, MutableMapping) and "method" not in value:
                _merge(present, before.get(key), value)
        elif key in before and present == before[key]:
            if value is None:
                del document[key]
            else:
                document[key] = value


def _match_control(candidates: MutableMapping[str, Any], name: str, model: str) -> None:
    """Give an added control the settings of the candidate that it controls; remove it where there is none."""
    control, controlled = candidates[name], candidates.get(model)
    if not isinstance(controlled, Mapping) or not isinstance(controlled.get("recovery"), Mapping):
        if control.get("student") != "same":
            del candidates[name]
        return
    if control.get("student") != "same":
        for key in ("from", "student", "width", "start"):
            if key in controlled:
                control[key] = copy.deepcopy(controlled[key])
    for key in ("epochs", "min_steps", "batch_size", "optimiser", "seed"):
        if key in controlled["recovery"]:
            control["recovery"][key] = copy.deepcopy(controlled["recovery"][key])
