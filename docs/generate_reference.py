"""Write docs/reference/ from the code: params.yaml, commands, records, metrics and tags, public functions.

    python docs/generate_reference.py            # write the pages
    python docs/generate_reference.py --check    # exit 1 if a page differs from what the code says

`make docs` writes them before it builds the site; a test runs the check.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import winnow
from tasks.tracking.tags import TAGS
from winnow.cli.main import cli
from winnow.config import Config
from winnow.config.field_docs import field_docs
from winnow.records.benchmark import Precision, Runtime
from winnow.records.candidate_file import CandidateFile
from winnow.records.card import CandidateCard, DeploymentCard
from winnow.records.finetune import FinetuneDetails
from winnow.records.metric_names import METRICS, PLACEHOLDERS
from winnow.records.record_reader import RECORDS
from winnow.records.step_record import StepRecord

RUNTIMES = {
    "eager": "PyTorch as written",
    "compile": "torch.compile",
    "compile-autotune": "torch.compile in mode max-autotune",
    "ort": "ONNX Runtime on the CPU",
    "openvino": "OpenVINO on the CPU",
    "openvino-throughput": "OpenVINO on the CPU, with the batch divided among parallel streams",
    "eager-cuda": "PyTorch on an NVIDIA GPU",
    "ort-cuda": "ONNX Runtime on an NVIDIA GPU",
    "ort-tensorrt": "ONNX Runtime with TensorRT",
}
PRECISIONS = {
    "f32": "float32",
    "bf16": "bfloat16",
    "int8": "int8 layers of an int8 file in int8, the others in float32",
    "int8-bf16": "int8 layers of an int8 file in int8, the others in bfloat16",
}
NAMED_TYPES = {get_args(Runtime): "[runtime](#runtimes)", get_args(Precision): "[precision](#precisions)"}
"""Values of a type -> the link to the table that lists them."""
SECTION_TEXTS = {
    "pretrain": "The backbone, and the method that trains it without labels. The keys depend on `pretrain.method`. "
    "`auto` is `distill` with a teacher, else `rotnet`, or `simclr` if `data.up` is false.",
    "candidates": "Each key of this section is the name of a candidate, a compressed network: NAME below. A candidate "
    "has the keys of its method.",
}
"""Introductions of the sections that have a table for each method."""
METRIC_GROUPS = {
    "data": "Data",
    "pretrain": "Pretraining",
    "pretraining": "Gain by pretraining",
    "unlabelled": "Gain by images without labels",
    "labels": "Label check",
    "quality": "Quality on the validation split",
    "delta": "Quality on the validation split",
    "cross_validation": "Cross-validation",
    "parity": "Size and structure",
    "size": "Size and structure",
    "compute": "Size and structure",
    "latency": "Speed and memory",
    "throughput": "Speed and memory",
    "memory": "Speed and memory",
    "start": "Speed and memory",
    "best": "Speed and memory",
    "speedup": "Speed-up",
    "error": "Benchmark",
    "cases": "Benchmark",
    "select": "Selection",
    "winner": "Selection",
    "refit": "Refit",
    "test": "Test split",
    "drift": "Drift",
    "search": "Search",
}
"""First part of a metric's name -> the heading under which it is listed."""
PLACEHOLDER_TEXTS = {
    "runtime": "ort: ONNX Runtime; ov: OpenVINO; ov-streams: OpenVINO with parallel streams",
    "baseline": "dense in: PyTorch eager float32; the fastest float PyTorch; the fastest float precision and runtime",
    "batch": "images per call, such as 1 or 64",
    "split": "the splits of the data",
    "percentile": "median, and 95th percentile of the calls",
    "reference": "the better of the two, from which drops are counted",
    "role": "selected: the winner before its refit",
    "test": "a drift test: embeddings, classes or confidence",
}
FUNCTION_GROUPS = {
    "Data": ("read_images", "images_from_arrays", "limit_labels"),
    "Train": ("embed", "pretrain", "finetune", "pseudo_labels", "probe"),
    "Compress": ("prune", "factorize", "distill", "quantize", "sparsify", "cluster"),
    "Predict and measure": ("predict", "evaluate", "time_networks"),
    "Save and load": ("save", "load"),
    "Types": ("ImageSet", "Teacher", "Network", "OnnxNetwork", "Accuracy"),
}
"""Heading -> functions and types of `import winnow`, in the order of their use."""
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
    """Return the docstring in one line, with links to the decisions that it names."""
    text = " ".join((model.__doc__ or "").split())
    return re.sub(r"docs/(decisions/(\d{4})[\w-]*\.md)", r"[decision \2](../\1)", text)


def _params_page() -> str:
    parts = [
        "# params.yaml",
        "The file has one section per step. The tables list every key with its type, default and meaning; a key that "
        "the file leaves out has its default. The shipped file sets some keys to other values. "
        "All keys are checked when the file is loaded, and a mistake is reported "
        "with its path, its value and the valid choices. `winnow run -S key=value` sets a key in the file.",
        "[Your own images](../own-images.md#keys-to-check) lists the keys to check first. "
        "[Compression](../compression.md) describes the candidates, [Measuring](../measuring.md) the terms.",
    ]
    seen: dict[tuple[type, str], str] = {}
    for name, field in Config.model_fields.items():
        parts.append(f"## {name}")
        parts += [SECTION_TEXTS[name]] if name in SECTION_TEXTS else []
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
        for name, field in model.model_fields.items():
            if _method_names(field.annotation):
                yield from _section(field.annotation, f"{prefix}{name}.", seen)


def _method_names(annotation: Any) -> list[str]:
    """Return the names of the methods where the annotation is a choice of models, each with a method; else []."""
    models = list(_models(annotation))
    if len(models) < 2 or not all("method" in model.model_fields for model in models):
        return []
    return [value for model in models for value in get_args(model.model_fields["method"].annotation)]


def _rows(
    model: type[BaseModel], prefix: str, defaults: BaseModel | None, seen: dict[tuple[type, str], str]
) -> Iterator[list[str]]:
    """Yield a row for each key. `defaults`: the values of this section where the file leaves it out."""
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = [part for part in _models(field.annotation) if part is not model]
        default = _default(field, defaults, name)
        if methods := _method_names(field.annotation):
            value = field.get_default(call_default_factory=True)
            names = _join([f"`{method}`" for method in methods])
            yield [f"`{key}`", f"{names}, or a section", f"`{value.method}`", f"{docs[name]} Its keys follow below."]
            continue
        if len(nested) != 1 or _is_union_of_scalars(field.annotation):
            yield [f"`{key}`", _type(field.annotation, field.metadata), default, docs[name]]
            continue
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        described = (nested[0], repr(value))
        if described in seen:
            default = "as there" if default == "see below" else default
            yield [f"`{key}`", "section", default, f"{docs[name]} Its keys are those of `{seen[described]}` above."]
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
    """Return a type for people: "integer (from 1)", "`rotnet` or `simclr`", "list of numbers"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin is Literal:
        return NAMED_TYPES.get(arguments, _join([f"`{value}`" for value in arguments]))
    if origin in (Union, types.UnionType):
        return _join(list(dict.fromkeys("none" if part is type(None) else _type(part, metadata) for part in arguments)))
    if origin is dict:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin in (list, tuple):
        inner = _join(list(dict.fromkeys(_type(part) for part in arguments if part is not Ellipsis)))
        return "list of " + re.sub(r"^(integer|number)", r"\1s", inner)
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "none", Any: "any value"}
    name = names.get(annotation, getattr(annotation, "__name__", str(annotation)))
    if _is_model(annotation):
        return f"[{name}](#{name.lower()})"
    return f"{name}{_limits(metadata)}"


def _join(parts: list[str]) -> str:
    """Return "a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation))


def _flat(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    """Return the limits of a number: " (from 8, up to 1024)"; "" without limits. Of two lower limits the higher one."""
    lowest: float | None = None
    limits: dict[str, str] = {}
    for item in _flat(metadata):
        if isinstance(item, Ge):
            lowest = item.ge if lowest is None else max(lowest, item.ge)
            limits["low"] = f"from {lowest}"
        elif isinstance(item, Gt):
            limits["low"] = f"above {item.gt}"
        elif isinstance(item, Le):
            limits["high"] = f"up to {item.le}"
        elif isinstance(item, Lt):
            limits["high"] = f"below {'2^32' if item.lt == 2**32 else item.lt}"
    words = [limits[end] for end in ("low", "high") if end in limits]
    return f" ({', '.join(words)})" if words else ""


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
    commands = list(_commands(cli, click.Context(cli, info_name="winnow", **cli.context_settings)))
    rows = [[f"[{name}](#{name.replace(' ', '-')})", _first_line(command)] for name, command, _ in commands]
    parts = ["# Commands", "`winnow COMMAND --help` prints the same text.", _table(["command", "what it does"], rows)]
    for name, command, context in commands:
        help_text = command.get_help(context).replace("\b", "")
        parts.append(f"## {name}\n\n```text\n{help_text}\n```")
    return "\n\n".join(parts)


def _commands(group: click.Group, parent: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Yield (whole name, command, context for its help) of each command of a group, and of the groups inside it."""
    for name in group.list_commands(parent):
        command = group.commands[name]
        context = click.Context(command, parent, info_name=name, terminal_width=100, max_content_width=100)
        if isinstance(command, click.Group):
            yield from _commands(command, context)
        else:
            yield context.command_path, command, context


def _first_line(command: click.Command) -> str:
    return (command.help or "").strip().partition("\n")[0]


def _records_page() -> str:
    parts = [
        "# Records",
        "Each step leaves a file `record.json` in its folder below `artifacts/`; the model file of a candidate has a "
        "`card.json` beside it. All records have the fields of this table. `details` differs by step and is described "
        "below. In Python `winnow.records.read_record(folder)` reads a record as a typed model.",
        _fields_table(StepRecord),
        "Shares and top-1 are fractions between 0 and 1; a point is a hundredth. "
        "[Measuring](../measuring.md#terms) defines the terms.",
    ]
    described: set[type] = {StepRecord}
    for step, record_type in RECORDS.items():
        parts.append(f"## {step}")
        models = list(_models(record_type.model_fields["details"].annotation))
        if step == "compress":
            parts += _methods(models, described)
            continue
        model = FinetuneDetails if step == "finetune" else models[0]
        parts += [_summary(model), _fields_table(model), *_nested(model, described)]
    parts.append("## card.json")
    for card in (CandidateCard, DeploymentCard):
        described.add(card)
        base = CandidateCard if card is DeploymentCard else None
        note = " It has all fields of CandidateCard, and these:" if base else ""
        parts += [f"### {card.__name__}", _summary(card) + note, _fields_table(card, base), *_nested(card, described)]
    parts.append("## Artifacts, runtimes and precisions")
    parts += list(_nested(StepRecord, described))
    parts += [
        "### Runtimes",
        _table(["runtime", "what runs"], [[f"`{name}`", text] for name, text in RUNTIMES.items()]),
    ]
    parts += ["### Precisions", _table(["precision", "what it is"], [[f"`{k}`", v] for k, v in PRECISIONS.items()])]
    assert (tuple(RUNTIMES), tuple(PRECISIONS)) == (get_args(Runtime), get_args(Precision))
    return "\n\n".join(parts)


def _methods(models: list[type], described: set[type]) -> Iterator[str]:
    """Yield the details of compressed candidates: the fields that all have, then those of each method."""
    yield "The details of a compressed candidate are these fields, and those of its method."
    yield _fields_table(CandidateFile)
    for model in models:
        if model is not FinetuneDetails:
            yield f"### Method {get_args(model.model_fields['method'].annotation)[0]}"
            yield _summary(model)
            yield _fields_table(model, CandidateFile)
            yield from _nested(model, described)


def _nested(model: type, described: set[type]) -> Iterator[str]:
    """Yield the tables of the models inside a model, each once on the page."""
    for annotation in _annotations(model).values():
        for part in _classes(annotation):
            if part not in described:
                described.add(part)
                yield f"### {part.__name__}"
                yield _summary(part)
                yield _fields_table(part)
                yield from _nested(part, described)


def _annotations(model: type) -> dict[str, Any]:
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return get_type_hints(model)


def _classes(annotation: Any) -> Iterator[type]:
    """Yield the models and dataclasses inside an annotation."""
    if _is_model(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _classes(part)


def _fields_table(model: type, base: type | None = None) -> str:
    """Return the table of a model's fields; without those of `base`, where it is given."""
    docs = _field_texts(model)
    left_out = set(_annotations(base)) if base else set()
    rows = [
        [f"`{name}`", "by step" if name == "details" else _type(annotation), docs[name]]
        for name, annotation in _annotations(model).items()
        if name not in left_out
    ]
    return _table(["field", "type", "meaning"], rows)


def _field_texts(model: type) -> dict[str, str]:
    """Return field -> its docstring, from the nearest class that has one."""
    texts: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if _is_model(part) and part is not BaseModel:
            texts |= {name: text for name, text in field_docs(part).items() if text}
    return texts


def _metrics_page() -> str:
    parts = [
        "# Metrics and tags in MLflow",
        "All candidates have the same metrics, in `record.json` and in MLflow. Fractions are between 0 and 1; a "
        "point is a hundredth. [Measuring](../measuring.md#terms) defines the terms.",
        "A word in braces stands for one of several values:",
        _table(
            ["word", "values", "meaning"],
            [
                [f"`{{{word}}}`", _placeholder_values(values), PLACEHOLDER_TEXTS.get(word, "")]
                for word, values in PLACEHOLDERS.items()
            ],
        ),
        "## Metrics",
    ]
    groups: dict[str, list[list[str]]] = {}
    for name, text in METRICS.items():
        groups.setdefault(METRIC_GROUPS[name.partition("/")[0]], []).append([f"`{name}`", text])
    for title, rows in groups.items():
        parts += [f"### {title}", _table(["metric", "meaning"], rows)]
    parts += ["## Tags", _table(["tag", "on", "meaning"], [[f"`{tag}`", *row] for tag, row in TAGS.items()])]
    return "\n\n".join(parts)


def _placeholder_values(values: str) -> str:
    """Return the values of a regular expression a|b|c; "" for other expressions."""
    return "" if "[" in values else _join([f"`{value}`" for value in values.split("|")])


def _functions_page() -> str:
    parts = [
        "# Functions of `import winnow`",
        "The functions work on arrays and networks in memory. [The library in memory](../library.md) has an example of "
        "each. Letters are dimensions: N images (or a batch B), S pixels along each side, C classes.",
    ]
    listed = [name for names in FUNCTION_GROUPS.values() for name in names]
    assert sorted(listed) == sorted(winnow.__all__), "FUNCTION_GROUPS does not list the names of winnow.__all__"
    for title, names in FUNCTION_GROUPS.items():
        parts.append(f"## {title}")
        parts += [_describe_function(name, getattr(winnow, name)) for name in names]
    return "\n\n".join(parts)


def _describe_function(name: str, thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    if not inspect.isclass(thing):
        return f"### winnow.{name}\n\n```python\n{name}{_signature(thing)}\n```\n\n{text}"
    docs = _field_texts(thing)
    rows = [[f"`{field}`", _type_name(kind), docs[field]] for field, kind in _annotations(thing).items()]
    return f"### winnow.{name}\n\n{text}\n\n{_table(['field', 'type', 'meaning'], rows)}"


def _type_name(annotation: Any) -> str:
    """Return the type without a link: the functions page describes no records."""
    return f"`{annotation.__name__}`" if _is_model(annotation) else _type(annotation)


def _signature(function: Any) -> str:
    """Return the parameters with their types as the code writes them, one a line where there are many."""
    signature, parts = inspect.signature(function), []
    kinds = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{kinds.get(parameter.kind, '')}{parameter.name}: {parameter.annotation}{default}")
    line = f"({', '.join(parts)}) -> {signature.return_annotation}"
    if len(line) <= 80:
        return line
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {signature.return_annotation}"


if __name__ == "__main__":
    main()
