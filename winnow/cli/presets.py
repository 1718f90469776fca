"""Presets: files of the package that change several keys of params.yaml at once, as `winnow run --full` does.

A preset is merged into the settings. `null` removes a key. A mapping with a `method` is added where its key is missing,
and otherwise ignored: what the user has defined stays. Any other mapping is merged where the file has a mapping, and
ignored elsewhere: a candidate that was removed does not come back in part.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

FULL = "full.yaml"
"""The preset of `--full`, in tasks/project/templates/."""


def merge_preset(document: MutableMapping[str, Any], preset: Mapping[str, Any]) -> None:
    """Change `document` in place by the keys of `preset`."""
    for key, value in preset.items():
        present = document.get(key)
        if value is None:
            document.pop(key, None)
        elif not isinstance(value, Mapping) or ("method" in value and key not in document):
            document[key] = value
        elif isinstance(present, MutableMapping) and "method" not in value:
            merge_preset(present, value)
