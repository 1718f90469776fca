"""`-S key=value`: set keys of params.yaml, keep its comments, check the whole, show what changed.

Values are YAML, so that `-S data.path=/my photos/2024, summer=hot` and `-S finetune.seeds=[0,1]` mean what they say.
Nothing is written unless the result is sound and what it names is there. Another `pretrain.method` takes the settings
of the method before it out of the file, so that its own values count.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, MutableMapping
from datetime import date
from typing import Any

import yaml

from tasks.project.paths import ProjectPaths, check_files
from winnow.cli.progress import say
from winnow.config import TOO_DEEP, NoPretraining, check_config
from winnow.config.keys import keys_below
from winnow.errors import ConfigError
from winnow.records import renamed

TEXT = "tag:yaml.org,2002:str"


def set_keys(places: ProjectPaths, assignments: list[str]) -> None:
    """Apply `dotted.key=value` assignments to params.yaml and print the difference."""
    path = places.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    after = edited(before, assignments)
    write_params(places, after)
    if dropped := settings_of_another_method(yaml.safe_load(before), assignments):
        method = yaml.safe_load(after)["pretrain"]["method"]
        say(
            f"pretrain.method: {method} has its own {', '.join(dropped)}: the values of the method before it were "
            f"removed from params.yaml; to set one for {method}, add e.g. -S pretrain.{dropped[0]}=..."
        )


def write_params(places: ProjectPaths, after: str) -> None:
    """The new text of params.yaml, if it is sound, and print the difference."""
    path = places.root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    check_files(check_config(yaml.safe_load(after), "params.yaml with these settings"), places.root)
    if after == before:
        return
    with renamed(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
    changed = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "params.yaml", n=0, lineterm="")
    say("\n".join(line for line in changed if not line.startswith(("@@", "---"))))


def set_benchmark_target(places: ProjectPaths, target: str, overflowing: list[str]) -> None:
    """Let gates go by the figures in the file `target`; int8 candidates in `overflowing` no longer saturate."""

    def change(document: Any) -> None:
        document["benchmark"]["target"] = target
        for name in overflowing:
            document["candidates"][name]["overflow_safe"] = True

    write_params(places, edited_by((places.root / "params.yaml").read_text(encoding="utf-8"), change))


def edited(text: str, assignments: list[str]) -> str:
    """The text of params.yaml with the assignments made; whether the values are sound is not looked at."""

    def assign(document: Any) -> None:
        for key in settings_of_another_method(document, assignments):
            del document["pretrain"][key]
        for assignment in assignments:
            _assign(document, assignment)

    return edited_by(text, assign)


def settings_of_another_method(document: Any, assignments: list[str]) -> list[str]:
    """Return the keys of `pretrain:` in the file that belong to its method, where the assignments name another one.

    None where one of the two is `none`, which passes over such keys, so that they may stay.
    """
    section = document.get("pretrain") if isinstance(document, MutableMapping) else None
    pairs = (assignment.partition("=") for assignment in assignments)
    named = [text.strip() for key, _, text in pairs if key.strip() == "pretrain.method"]
    if not isinstance(section, MutableMapping) or not named or {section.get("method"), named[-1]} & {"none"}:
        return []
    if section.get("method") == named[-1]:
        return []
    return [key for key in section if key not in NoPretraining.model_fields]


def edited_by(text: str, change: Callable[[Any], None]) -> str:
    """The text of params.yaml once `change` has worked on the document in place; comments stay."""
    from ruamel.yaml import YAML, YAMLError

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 1000
    try:
        document = editor.load(text)
    except YAMLError as error:
        raise ConfigError(f"params.yaml is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"params.yaml: {TOO_DEEP}") from error
    change(document)
    buffer = io.StringIO()
    editor.dump(document, buffer)
    return buffer.getvalue()


def _assign(document: Any, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"-S {assignment}: expected key=value, as in -S data.source=folder")
    *above, last = key.strip().split(".")
    at = document
    for depth, part in enumerate([*above, last]):
        known = _known(document, above[:depth], at)
        if not isinstance(at, MutableMapping) or part not in known:
            where = ".".join(above[:depth]) or "params.yaml"
            told = ", ".join(known) or "nothing below it"
            raise ConfigError(f"-S {assignment}: {where} has no key {part!r}; it has {told}")
        if depth < len(above):
            at = at.setdefault(part, {})
    at[last] = _as_written(_value(text.strip(), assignment))


def _known(document: Any, path: list[str], at: Any) -> list[str]:
    """Keys that the file has there, and those that it may have."""
    there = list(map(str, at)) if isinstance(at, MutableMapping) else []
    return list(dict.fromkeys((*there, *keys_below(path, document))))


def _value(text: str, assignment: str) -> Any:
    """YAML, but what only looks like more because it is a path stays text: `a: b`, `photos #2`, `2024-05-01`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    except RecursionError as error:
        raise ConfigError(f"-S {assignment[:40]}...: {TOO_DEEP}") from error
    if not text:
        raise ConfigError(f"-S {assignment}: the value is empty")
    only_looks_so = (
        (isinstance(value, dict | list) and text[0] not in "{[")
        or (isinstance(value, str) and text[0] not in "'\"")
        or isinstance(value, date)
        or text.startswith("#")
    )
    return text if only_looks_so else value


def _as_written(value: Any) -> Any:
    """For the file, as it reads it: lists on one line, 1.0e-05 (not 1e-05), quotes around text like on and 1:30."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq
    from ruamel.yaml.scalarstring import SingleQuotedScalarString

    if isinstance(value, list):
        items = CommentedSeq(map(_as_written, value))
        items.fa.set_flow_style()
        return items
    if isinstance(value, float):
        return YAML().load(yaml.safe_dump(value))
    if isinstance(value, str) and _reads_as(value) != TEXT:
        return SingleQuotedScalarString(value)
    return value


def _reads_as(plain: str) -> str:
    """The tag that PyYAML gives this text without quotes."""
    tag: str = yaml.resolver.Resolver().resolve(yaml.ScalarNode, plain, (True, False))  # type: ignore[no-untyped-call]
    return tag
