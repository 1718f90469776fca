"""Set keys of params.yaml (`-S key=value`): keep its comments, check the result, show the difference.

Values are YAML, so that `-S data.path=/my photos/2024, summer=hot` and `-S finetune.seeds=[0,1]` mean what they say.
Nothing is written unless the result is valid and the files it names exist. Another `pretrain.method` removes the
settings of the method before it, so that its own defaults apply. `teacher.weights=none` removes what needs a teacher.
A preset (winnow/cli/presets.py) is applied before the keys.
"""

from __future__ import annotations

import copy
import difflib
import io
from collections.abc import Callable, MutableMapping
from datetime import date
from typing import Any

import yaml

from tasks.project.paths import ProjectPaths, check_files
from tasks.project.templates import template
from winnow.cli.presets import merge_preset
from winnow.cli.progress import print_line
from winnow.config import TOO_DEEP_MESSAGE, NoPretraining, check_config
from winnow.config.key_listing import section_keys
from winnow.config.pretrain import AUTO, resolve_method
from winnow.config.weights import NO_WEIGHTS
from winnow.errors import ConfigError
from winnow.records import write_text

STRING_TAG = "tag:yaml.org,2002:str"


def set_keys(paths: ProjectPaths, assignments: list[str], preset: str = "") -> None:
    """Apply a preset, the name of a file of the package, and `dotted.key=value` assignments to params.yaml.

    Prints the difference.
    """
    path = paths.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    if preset:
        before = apply_preset(before, template(preset))
    after = apply_assignments(before, assignments)
    write_params(paths, after)
    if dropped := obsolete_settings(yaml.safe_load(before), assignments):
        former, method = (_pretraining_method(yaml.safe_load(text)) for text in (before, after))
        print_line(
            f"pretraining is now by the method {method}: the values of {', '.join(dropped)} in params.yaml were those "
            f"of {former} and were removed"
        )


def write_params(paths: ProjectPaths, after: str) -> None:
    """Write the new text of params.yaml, if it is valid, and print the difference."""
    path = paths.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    check_files(check_config(yaml.safe_load(after), "params.yaml with these settings"), paths.root)
    if after == before:
        return
    write_text(path, after)
    changed = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "params.yaml", n=0, lineterm="")
    print_line("\n".join(line for line in changed if not line.startswith(("@@", "---"))))


def set_benchmark_target(paths: ProjectPaths, target: str, overflowing: list[str]) -> None:
    """Make gates use the figures in the file `target`, and candidates in `overflowing` overflow-safe weights."""

    def change(document: Any) -> None:
        document["benchmark"]["target"] = target
        for name in overflowing:
            document["candidates"][name]["overflow_safe"] = True

    write_params(paths, edit_document((paths.root / "params.yaml").read_text(encoding="utf-8"), change))


def apply_assignments(text: str, assignments: list[str]) -> str:
    """Return the text of params.yaml after the assignments; their values are not checked."""

    def assign(document: Any) -> None:
        for key in obsolete_settings(document, assignments):
            del document["pretrain"][key]
        _assign_all(document, assignments)

    return edit_document(text, assign)


def apply_preset(text: str, preset: str) -> str:
    """Return the text of params.yaml after this preset, which is YAML; without a teacher, also without its uses.

    Text that holds no sections is returned as it is: loading it raises ConfigError.
    """
    changes = _load_document(preset)

    def change(document: Any) -> None:
        merge_preset(document, changes)
        if _teacher_weights(document) == NO_WEIGHTS:
            _remove_uses_of_teacher(document)

    return edit_document(text, change) if isinstance(_load_document(text), MutableMapping) else text


def obsolete_settings(document: Any, assignments: list[str]) -> list[str]:
    """Return the keys of `pretrain:` that belong to the present method, where the assignments lead to another one.

    Empty where the present method is `none`: such keys are those of no method yet.
    """
    before = _pretraining_method(document)
    changed = copy.deepcopy(document)
    _assign_all(changed, assignments)
    if before in (None, "none", _pretraining_method(changed)):
        return []
    return [key for key in document["pretrain"] if key not in NoPretraining.model_fields]


def _pretraining_method(document: Any) -> Any:
    """Return the method of pretraining, that which `auto` means; None where the file names none."""
    section = resolve_method(document).get("pretrain") if isinstance(document, MutableMapping) else None
    return section.get("method") if isinstance(section, MutableMapping) else None


def _assign_all(document: Any, assignments: list[str]) -> None:
    had_teacher = _teacher_weights(document) != NO_WEIGHTS
    for assignment in assignments:
        _assign(document, assignment)
    if had_teacher and _teacher_weights(document) == NO_WEIGHTS:
        _remove_uses_of_teacher(document)


def _teacher_weights(document: Any) -> Any:
    section = document.get("teacher") if isinstance(document, MutableMapping) else None
    return section.get("weights", NO_WEIGHTS) if isinstance(section, MutableMapping) else NO_WEIGHTS


def _remove_uses_of_teacher(document: Any) -> None:
    """Set the pretraining method `distill` to auto, remove candidates by the method probe and their descendants, and
    hints by embeddings.
    """
    if not isinstance(document, MutableMapping):
        return
    if isinstance(pretrain := document.get("pretrain"), MutableMapping) and pretrain.get("method") == "distill":
        pretrain["method"] = AUTO
    if not isinstance(candidates := document.get("candidates"), MutableMapping):
        return
    removed: set[str] = set()
    while found := {
        name
        for name, settings in candidates.items()
        if isinstance(settings, MutableMapping)
        and (settings.get("method") == "probe" or settings.get("from") in removed)
    }:
        removed |= found
        for name in found:
            del candidates[name]
    for settings in candidates.values():
        recovery = settings.get("recovery") if isinstance(settings, MutableMapping) else None
        if isinstance(recovery, MutableMapping) and recovery.get("hint") == "embeddings":
            recovery["hint"] = "none"


def edit_document(text: str, change: Callable[[Any], None]) -> str:
    """Return the text of params.yaml after `change` has edited the document in place; comments stay.

    ruamel holds the comments below a key at that key. So the lines of a removed key are removed first, and `change` is
    called again without it.
    """
    document = _load_document(text)
    before = copy.deepcopy(document)
    change(document)
    if lines := _removed_lines(before, document):
        text = "".join(line for number, line in enumerate(text.splitlines(keepends=True)) if number not in lines)
        document = _load_document(text)
        change(document)
    buffer = io.StringIO()
    _editor().dump(document, buffer)
    return buffer.getvalue()


def _removed_lines(before: Any, after: Any) -> set[int]:
    """Return the numbers of the lines, from 0, of keys with a number or a truth value that `after` no longer has.

    Other values may have several lines, keys in `{...}` share theirs, and a section needs a key that stays.
    """
    if not isinstance(before, MutableMapping) or not isinstance(after, MutableMapping):
        return set()
    section: Any = before  # ruamel's mapping, which knows its lines
    lines, stays = set(), any(key in after for key in section)
    for key, value in section.items():
        if key in after:
            lines |= _removed_lines(value, after[key])
        elif stays and not section.fa.flow_style() and not isinstance(value, MutableMapping | list | str):
            lines.add(section.lc.key(key)[0])
    return lines


def _editor() -> Any:
    """Return a YAML editor that keeps comments, quotes and long lines."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 1000
    return editor


def _load_document(text: str) -> Any:
    """Return the parsed text with its comments. Raises ConfigError."""
    from ruamel.yaml import YAMLError

    try:
        return _editor().load(text)
    except YAMLError as error:
        raise ConfigError(f"params.yaml is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"params.yaml: {TOO_DEEP_MESSAGE}") from error


def _assign(document: Any, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"-S {assignment}: expected key=value, as in -S data.source=folder")
    *above, last = key.strip().split(".")
    section = document
    for depth, part in enumerate([*above, last]):
        known_keys = _known_keys(document, above[:depth], section)
        if not isinstance(section, MutableMapping) or part not in known_keys:
            location = ".".join(above[:depth]) or "params.yaml"
            valid = ", ".join(known_keys) or "nothing below it"
            raise ConfigError(f"-S {assignment}: {location} has no key {part!r}; it has {valid}")
        if depth < len(above):
            child = section.setdefault(part, {})
            if isinstance(child, str) and "method" in _known_keys(document, above[: depth + 1], child):
                section[part] = child = {"method": child}  # a method that was named alone
            section = child
    section[last] = to_yaml(_parse_value(text.strip(), assignment))


def _known_keys(document: Any, path: list[str], section: Any) -> list[str]:
    """Return the keys in this section of the file, and those that it may have."""
    present = list(map(str, section)) if isinstance(section, MutableMapping) else []
    return list(dict.fromkeys((*present, *section_keys(path, document))))


def _parse_value(text: str, assignment: str) -> Any:
    """Return the value as YAML; text that only looks like YAML stays text: `a: b`, `photos #2`, `2024-05-01`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    except RecursionError as error:
        raise ConfigError(f"-S {assignment[:40]}...: {TOO_DEEP_MESSAGE}") from error
    if not text:
        raise ConfigError(f"-S {assignment}: the value is empty")
    is_plain_text = (
        (isinstance(value, dict | list) and text[0] not in "{[")
        or (isinstance(value, str) and text[0] not in "'\"")
        or isinstance(value, date)
        or text.startswith("#")
    )
    return text if is_plain_text else value


def to_yaml(value: Any) -> Any:
    """Return the value such that the file reads back the same: lists on one line, 1.0e-05, quotes around `on` and
    `1:30`.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq
    from ruamel.yaml.scalarstring import SingleQuotedScalarString

    if isinstance(value, list):
        items = CommentedSeq(map(to_yaml, value))
        items.fa.set_flow_style()
        return items
    if isinstance(value, float):
        return YAML().load(yaml.safe_dump(value))
    if isinstance(value, str) and _yaml_tag(value) != STRING_TAG:
        return SingleQuotedScalarString(value)
    return value


def _yaml_tag(plain: str) -> str:
    """Return the tag that PyYAML gives this text without quotes."""
    tag: str = yaml.resolver.Resolver().resolve(yaml.ScalarNode, plain, (True, False))  # type: ignore[no-untyped-call]
    return tag
