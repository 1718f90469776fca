"""params.yaml as frozen models, checked whole at load: every mistake at once, each with path, value and choices.

    config = load_config("params.yaml")
    config.pretrain.epochs

Imports no torch, so that `winnow status` and an unchanged run stay quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from winnow.config.benchmark import Benchmark
from winnow.config.candidates import (
    CONTROL,
    ROOT,
    AnyCandidate,
    Candidate,
    Cluster,
    Distill,
    Factorize,
    Prune,
    Quantize,
    Recovered,
    Recovery,
    Sparsify,
    may_train,
)
from winnow.config.data import Data
from winnow.config.drift import Drift
from winnow.config.finetune import FEW_LABELS, Finetune
from winnow.config.invariances import pretraining_problem, with_invariances
from winnow.config.pretrain import NoPretraining, Pretrain, RotNet, SimCLR
from winnow.config.promotion import Gates, Promotion
from winnow.config.refit import Refit
from winnow.config.search import Search
from winnow.config.section import Augmentation, Optimiser, Section
from winnow.config.tree import in_order, tree_errors
from winnow.errors import ConfigError

__all__ = [
    "CONTROL",
    "FEW_LABELS",
    "ROOT",
    "AnyCandidate",
    "Augmentation",
    "Benchmark",
    "Candidate",
    "Cluster",
    "Config",
    "Data",
    "Distill",
    "Drift",
    "Factorize",
    "Finetune",
    "Gates",
    "NoPretraining",
    "Optimiser",
    "Pretrain",
    "Promotion",
    "Prune",
    "Quantize",
    "Recovered",
    "Recovery",
    "Refit",
    "RotNet",
    "Search",
    "SimCLR",
    "Sparsify",
    "check_config",
    "in_order",
    "load_config",
    "may_train",
]


class Config(Section):
    """All of params.yaml; one section per step."""

    data: Data
    pretrain: Pretrain
    finetune: Finetune
    candidates: dict[str, AnyCandidate]
    benchmark: Benchmark
    promotion: Promotion
    refit: Refit
    drift: Drift = Drift()
    """Watched beside the steps; no step reads it."""
    search: Search = Search()
    """For `winnow search`; no step reads it."""


TREE = TypeAdapter(dict[str, AnyCandidate])
PLAIN = {
    "tuple_type": "expected a list, as in [0, 1]",
    "too_short": "expected a list with at least one value, as in [0, 1]",
    "model_type": "expected a section with keys of its own; see params.yaml as shipped",
    "model_attributes_type": "expected a section with keys of its own; see params.yaml as shipped",
    "dict_type": "expected a section with keys of its own; see params.yaml as shipped",
}
"""Pydantic's kinds of error whose own words speak of Python."""
TAG_AT = {"pretrain": 1, "candidates": 2}
"""Where in the location of an error pydantic puts the method's name, which is no key of the file."""


TOO_DEEP = "nested too deeply to be read; no setting lies deeper than a few levels"


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name every key once: of two candidates with one name the first would vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises ConstructorError at a key's second mention."""
        seen = set()
        for key, _ in node.value:
            if (known := (key.tag, str(key.value))) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(known)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> Config:
    """Read and check params.yaml. Raises ConfigError that lists every mistake."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); run winnow from the project's folder") from error
    try:
        raw = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: {TOO_DEEP}") from error
    return check_config(raw, str(path))


def check_config(raw: Any, where: str = "params.yaml") -> Config:
    """Check an already parsed params.yaml; `where` names it in the message."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected sections (data, pretrain, ...), found {type(raw).__name__}")
    try:
        config = Config.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = _readable(error)
        if not any(path.startswith("candidates") for path, _ in problems):
            problems += tree_errors(dict(TREE.validate_python(raw["candidates"], by_alias=True, by_name=False)))
    else:
        pretrained = not isinstance(config.pretrain, NoPretraining)
        problems = tree_errors(dict(config.candidates), config.pretrain.backbone, pretrained)
        if problem := pretraining_problem(config.data, config.pretrain.method):
            problems.append(("pretrain.method", problem))
        if not problems:
            return with_invariances(config.data, config)
    lines = "\n".join(f"  {path}: {message}" for path, message in problems)
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    raise ConfigError(f"{where} has {count}:\n{lines}")


def _readable(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted path, message) of every mistake."""
    found: dict[str, str] = {}
    for item in error.errors():
        if item["type"] == "too_short" and item["input"]:
            continue  # a list whose items are wrong; they speak for themselves
        path, message = _one(item)
        # Each arm of a union (`auto | all | a number`) complains about the same value.
        found[path] = f"{found[path].partition(' (found ')[0]}; or: {message}" if path in found else message
    return list(found.items())


def _one(item: Any) -> tuple[str, str]:
    keys, value, kind = list(item["loc"]), item["input"], item["type"]
    context = item.get("ctx", {})
    if len(keys) > TAG_AT.get(keys[0], len(keys)):
        del keys[TAG_AT[keys[0]]]
    path = ".".join(map(str, keys[:2] if keys[:2] == ["data", "labels_per_class"] else keys))
    if kind == "extra_forbidden":
        return path, "unknown key; remove it, or see params.yaml as shipped for the keys of this section"
    if kind == "missing":
        return path, "missing; every section of params.yaml as shipped must be there"
    if kind == "union_tag_invalid":
        return f"{path}.method", f"{context['tag']!r} is none of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{path}.method", "missing; it says which method this is"
    message = PLAIN.get(kind, str(item["msg"]).removeprefix("Value error, "))
    if isinstance(value, dict):
        return path, message
    return path, f"{message} (found {value!r})"
