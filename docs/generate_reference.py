"""Write docs/reference/ from the code: params.yaml, commands, records, metrics and tags, public functions.

    python docs/generate_reference.py            # write the pages
    python docs/generate_reference.py --check    # exit 1 if a page differs from what the code says

`make docs` writes them before it builds the site; a test runs the check.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import winnow
from tasks.tracking.tags import TAGS
from winnow.cli.main import cli
from winnow.config import Config
from winnow.config.field_docs import field_docs
from winnow.records.candidate import CandidateFile
from winnow.records.card import CandidateCard, DeploymentCard
from winnow.records.metric_names import METRICS
from winnow.records.record_reader import RECORDS
from winnow.records.step_record import StepRecord

COMMON_FIELDS = {
    "agreement": "share of images with the same answer",
    "arm": "starting weights: pretrained, scratch or weights",
    "artifacts": "the files of the step",
    "batch": "images per call",
    "bytes": "size of the file",
    "candidate": "the candidate",
    "candidates": "the candidates",
    "curves": "loss and metrics of each epoch",
    "float_layers": "layers that stay in float",
    "folds": "folds of the cross-validation",
    "high": "upper end of the 95 % interval",
    "images": "number of images",
    "labels": "numbers of labels",
    "learning_rate": "the learning rate",
    "low": "lower end of the 95 % interval",
    "machine": "the machine that was measured",
    "method": "the compression method",
    "name": "the name",
    "per_class": "class -> figures",
    "points_lost": "points of top-1 lost",
    "precision": "f32, bf16, int8 or int8-bf16",
    "reason": "why, with values and thresholds",
    "rung": "name of the rung",
    "runtime": "the runtime",
    "seed": "the label seed",
    "sha256": "digest of the file",
    "steps": "steps of the training",
    "threads": "threads of a call",
    "top1": "top-1 on validation, a fraction",
    "warnings": "warnings of the step",
    "why": "the reason, as text",
    "winner": "the candidate that won; none: nobody",
}
"""Meaning of fields that have the same name in many records."""
FOLDER = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- Written by docs/generate_reference.py. Do not edit. -->"


def main() -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    options = parser.parse_args()
    contents = pages()
    stale = [name for name, text in contents.items() if _read(FOLDER / name) != text]
    if not options.check:
        for name, text in contents.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    elif stale:
        raise SystemExit(f"stale: {', '.join(stale)}; run python docs/generate_reference.py")


def pages() -> dict[str, str]:
    """Return file name -> content of every page."""
    contents = {
        "params.md": _params_page(),
        "commands.md": _commands_page(),
        "records.md": _records_page(),
        "metrics.md": _metrics_page(),
        "functions.md": _functions_page(),
    }
    return {name: f"{NOTICE}\n\n{text.rstrip()}\n" for name, text in contents.items()}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _summary(model: type) -> str:
    return " ".join((model.__doc__ or "").split())


def _params_page() -> str:
    parts = [
        "# params.yaml",
        "Every key with its type, default and meaning. All keys are checked when the file is loaded; a mistake is "
        "reported with its path, its value and the valid choices. `-S key=value` of `winnow run` sets a key.",
    ]
    seen: dict[tuple[type, str], str] = {}
    for name, field in Config.model_fields.items():
        parts.append(f"## {name}")
        parts += _section(field.annotation, f"{name}.", seen)
    return "\n\n".join(parts)


def _section(annotation: Any, prefix: str, seen: dict[tuple[type, str], str]) -> Iterator[str]:
    """Yield the text of one section: its models, and those nested in them.

    `seen`: (model, defaults) -> the key where it was described; a section is described once.
    """
    models = list(_models(annotation))
    if get_origin(annotation) is dict:
        prefix += "NAME."
    for model in models:
        method = model.model_fields.get("method")
        if len(models) > 1 and method is not None:
            choice = " / ".join(f"`{value}`" for value in get_args(method.annotation))
            yield f"### {prefix}method: {choice}"
        yield _summary(model)
        yield _table(["key", "type", "default", "meaning"], list(_rows(model, prefix, None, seen)))


def _rows(
    model: type[BaseModel], prefix: str, defaults: BaseModel | None, seen: dict[tuple[type, str], str]
) -> Iterator[list[str]]:
    """Yield a row for each key. `defaults`: the values of this section where the file leaves it out."""
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = [part for part in _models(field.annotation) if part is not model]
        default = _default(field, defaults, name)
        if len(nested) != 1 or _is_union_of_scalars(field.annotation):
            yield [f"`{key}`", _type(field.annotation, field.metadata), default, docs[name]]
            continue
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        described = (nested[0], repr(value))
        if described in seen:
            yield [f"`{key}`", "section", default, f"as `{seen[described]}` above"]
            continue
        seen[described] = key
        yield [f"`{key}`", "section", default, docs[name] or _summary(nested[0])]
        yield from _rows(nested[0], f"{key}.", value if isinstance(value, BaseModel) else None, seen)


def _is_union_of_scalars(annotation: Any) -> bool:
    return any(part in (int, float, str) for part in get_args(annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return a type for people: "integer from 1", "rotnet or simclr", "list of numbers"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys("none" if part is type(None) else _type(part, metadata) for part in arguments))
    if origin in (list, tuple, dict):
        inner = [part for part in arguments if part is not Ellipsis]
        return f"{'map' if origin is dict else 'list'} of {' to '.join(dict.fromkeys(_type(part) for part in inner))}"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "none"}
    name = names.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{name}{_limits(metadata)}"


def _flat(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    words = []
    for item in _flat(metadata):
        if isinstance(item, Ge):
            words.append(f"from {item.ge}")
        elif isinstance(item, Gt):
            words.append(f"above {item.gt}")
        elif isinstance(item, Le):
            words.append(f"up to {item.le}")
        elif isinstance(item, Lt):
            words.append(f"below {item.lt}")
        elif isinstance(item, MinLen):
            words.append(f"of at least {item.min_length}")
    return f" {' '.join(words)}" if words else ""


def _default(field: FieldInfo, defaults: BaseModel | None, name: str) -> str:
    if defaults is None and field.is_required():
        return "required"
    value = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value not in ("", None) else "none"


def _commands_page() -> str:
    parts = ["# Commands", "`winnow COMMAND --help` prints the same."]
    parent = click.Context(cli, info_name="winnow", **cli.context_settings)
    for name, command in cli.commands.items():
        context = click.Context(command, parent, info_name=name, terminal_width=100, max_content_width=100)
        help_text = command.get_help(context).replace("\b", "")
        parts.append(f"## winnow {name}\n\n```text\n{help_text}\n```")
    return "\n\n".join(parts)


def _records_page() -> str:
    parts = [
        "# Records",
        "Each step leaves `record.json` in its folder below `artifacts/`. All records have these fields; `details` "
        "differs by step. `winnow.records.read_record(folder)` reads one as a typed model.",
        _fields_table(StepRecord),
    ]
    described: set[type] = {StepRecord}
    for step, record_type in RECORDS.items():
        details = record_type.model_fields["details"].annotation
        parts.append(f"## {step}")
        models = list(_models(details))
        for model in models:
            title = f"`{model.model_fields['method'].annotation.__args__[0]}`: " if len(models) > 1 else ""
            parts += [f"{title}{_summary(model)}", _fields_table(model)]
            described.add(model)
            parts += list(_nested(model, described))
    for card in (CandidateCard, DeploymentCard):
        parts += [f"## card.json: {card.__name__}", _summary(card), _fields_table(card)]
        described.add(card)
        parts += list(_nested(card, described))
    return "\n\n".join(dict.fromkeys(parts))


def _nested(model: type, described: set[type]) -> Iterator[str]:
    """Yield the tables of the models inside a model, each once on the page."""
    for part in _parts(model):
        if part not in described:
            described.add(part)
            yield f"**{part.__name__}**: {_summary(part)}"
            yield _fields_table(part)
            yield from _nested(part, described)


def _parts(model: type) -> Iterator[type]:
    for annotation in _annotations(model).values():
        yield from _classes(annotation)


def _annotations(model: type) -> dict[str, Any]:
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    import typing

    return typing.get_type_hints(model)


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    for part in get_args(annotation):
        yield from _classes(part)


def _fields_table(model: type) -> str:
    docs = field_docs(model)
    is_method = issubclass(model, CandidateFile) and model is not CandidateFile
    shared = set(CandidateFile.model_fields) if is_method else set()
    rows = [
        [f"`{name}`", _type(annotation), docs.get(name) or COMMON_FIELDS.get(name) or _meaning(annotation)]
        for name, annotation in _annotations(model).items()
        if name not in shared or name == "method" or model.__name__ == "FinetuneDetails"
    ]
    return _table(["field", "type", "meaning"], rows)


def _meaning(annotation: Any) -> str:
    """Return the description of the model that a field holds; "" for other types."""
    return next((_summary(part) for part in _classes(annotation)), "")


def _metrics_page() -> str:
    return "\n\n".join(
        [
            "# Metrics and tags in MLflow",
            "Metrics have the same names for all candidates, in records and in MLflow. Words in braces stand for one "
            "of several values. Fractions are between 0 and 1; points are hundredths of a fraction.",
            _table(["metric", "meaning"], [[f"`{name}`", text] for name, text in METRICS.items()]),
            "## Tags",
            _table(["tag", "on", "meaning"], [[f"`{tag}`", *row] for tag, row in TAGS.items()]),
        ]
    )


def _functions_page() -> str:
    parts = [
        "# Functions of `import winnow`",
        "They work on arrays and networks in memory. [library.md](../library.md) has an example of each.",
    ]
    for name in winnow.__all__:
        thing = getattr(winnow, name)
        text = inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            fields = _table(
                ["field", "type"], [[f"`{field}`", _type(kind)] for field, kind in _annotations(thing).items()]
            )
            parts.append(f"## winnow.{name}\n\n{text}\n\n{fields}")
        else:
            parts.append(f"## winnow.{name}\n\n```python\n{name}{_signature(thing)}\n```\n\n{text}")
    return "\n\n".join(parts)


def _signature(function: Any) -> str:
    """Return the parameters with their types as the code writes them."""
    signature, parts = inspect.signature(function), []
    kinds = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{kinds.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}{default}")
    return f"({', '.join(parts)}) -> {signature.return_annotation}"


if __name__ == "__main__":
    main()
