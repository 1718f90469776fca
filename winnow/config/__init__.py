"""Load params.yaml as frozen models and report all mistakes at once, each with path, value and choices.

    config = load_config("params.yaml")
    config.pretrain.epochs

This package does not import torch, so that `winnow status` and an unchanged run stay fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from winnow.config.benchmark import Benchmark
from winnow.config.candidate_names import CONTROL, ROOT
from winnow.config.candidate_tree import topological_order, tree_errors
from winnow.config.candidates import (
    METHOD_SETTINGS,
    AnyCandidate,
    Candidate,
    Cluster,
    Distill,
    Factorize,
    Probe,
    Prune,
    Quantize,
    Sparsify,
    TrainedCandidate,
    may_train,
)
from winnow.config.data import Data
from winnow.config.drift import Drift
from winnow.config.finetune import FEW_LABELS, Finetune
from winnow.config.invariances import apply_invariances, pretraining_problem, unlabelled_problem
from winnow.config.pretrain import (
    AUTO,
    DistillEmbeddings,
    NoPretraining,
    Pretrain,
    Pretraining,
    RotNet,
    SimCLR,
    TrainedPretraining,
    resolve_method,
)
from winnow.config.promotion import Gates, Promotion
from winnow.config.recovery import Recovery
from winnow.config.refit import Refit
from winnow.config.search import Search
from winnow.config.section import Augmentation, Optimiser, Section
from winnow.config.teacher import Teacher
from winnow.config.unlabelled import FixMatch, NoUnlabelled, Propagation, UnlabelledTraining
from winnow.config.weights import NO_WEIGHTS
from winnow.errors import ConfigError

__all__ = [
    "CONTROL",
    "FEW_LABELS",
    "METHOD_SETTINGS",
    "ROOT",
    "AnyCandidate",
    "Augmentation",
    "Benchmark",
    "Candidate",
    "Cluster",
    "Config",
    "Data",
    "Distill",
    "DistillEmbeddings",
    "Drift",
    "Factorize",
    "Finetune",
    "FixMatch",
    "Gates",
    "NoPretraining",
    "NoUnlabelled",
    "Optimiser",
    "Pretrain",
    "Pretraining",
    "Probe",
    "Promotion",
    "Propagation",
    "Prune",
    "Quantize",
    "Recovery",
    "Refit",
    "RotNet",
    "Search",
    "SimCLR",
    "Sparsify",
    "Teacher",
    "TrainedCandidate",
    "TrainedPretraining",
    "UnlabelledTraining",
    "check_config",
    "check_settings",
    "load_config",
    "may_train",
    "topological_order",
]


class Config(Section):
    """All of params.yaml; one section per step."""

    data: Data
    teacher: Teacher
    pretrain: Pretrain
    finetune: Finetune
    candidates: dict[str, AnyCandidate]
    benchmark: Benchmark
    promotion: Promotion
    refit: Refit
    drift: Drift = Drift()
    """The settings of `winnow drift`; no step reads them."""
    search: Search = Search()
    """The settings of `winnow search`; no step reads them."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_method(cls, raw: Any) -> Any:
        return resolve_method(raw)


CANDIDATES_ADAPTER = TypeAdapter(dict[str, AnyCandidate])
PLAIN_MESSAGES = {
    "tuple_type": "expected a list, as in [0, 1]",
    "too_short": "expected a list with at least one value, as in [0, 1]",
    "model_type": "expected a section with keys of its own; see params.yaml as shipped",
    "model_attributes_type": "expected a section with keys of its own; see params.yaml as shipped",
    "dict_type": "expected a section with keys of its own; see params.yaml as shipped",
}
"""Messages for the pydantic error types whose own messages are about Python."""
METHOD_POSITIONS = {"pretrain": 1, "candidates": 2, "finetune.unlabelled": 2, "unlabelled": 1}
"""The position of the method's name in an error's location; it is not a key of the file."""

SectionType = TypeVar("SectionType", bound=Section)
TOO_DEEP_MESSAGE = "nested too deeply to be read; settings have only a few levels"


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys: the first of two candidates with one name would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises ConstructorError for a duplicate key."""
        seen = set()
        for key, _ in node.value:
            if (identity := (key.tag, str(key.value))) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(identity)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> Config:
    """Read and check params.yaml. Raises ConfigError with all mistakes."""
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
        raise ConfigError(f"{path}: {TOO_DEEP_MESSAGE}") from error
    return check_config(raw, str(path))


def check_config(raw: Any, where: str = "params.yaml") -> Config:
    """Check a parsed params.yaml, which messages call `where`. Raises ConfigError with all mistakes."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected sections (data, pretrain, ...), found {type(raw).__name__}")
    try:
        config = Config.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = _list_problems(error)
        if not any(path.startswith("candidates") for path, _ in problems):
            problems += tree_errors(
                dict(CANDIDATES_ADAPTER.validate_python(raw["candidates"], by_alias=True, by_name=False))
            )
    else:
        is_pretrained = not isinstance(config.pretrain, NoPretraining) or config.pretrain.start != NO_WEIGHTS
        has_teacher = config.teacher.weights != NO_WEIGHTS
        problems = tree_errors(dict(config.candidates), config.pretrain.backbone, is_pretrained, has_teacher)
        if problem := pretraining_problem(config.data, config.pretrain.method):
            problems.append(("pretrain.method", problem))
        if problem := unlabelled_problem(config.data, config.finetune.unlabelled.method):
            problems.append(("finetune.unlabelled", problem))
        if isinstance(config.pretrain, DistillEmbeddings) and not has_teacher:
            problems.append(("pretrain.method", "distill needs a teacher: set teacher.weights, or method: auto"))
        if not problems:
            return apply_invariances(config.data, config)
    raise _config_error(where, problems)


def check_settings(section: type[SectionType], raw: dict[str, Any], where: str) -> SectionType:
    """Check the settings of one section, which messages call `where`. Raises ConfigError with all mistakes."""
    try:
        return section.model_validate(raw, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _config_error(where, _list_problems(error)) from None


def _config_error(where: str, problems: list[tuple[str, str]]) -> ConfigError:
    lines = "\n".join(f"  {path}: {message}" if path else f"  {message}" for path, message in problems)
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    return ConfigError(f"{where} has {count}:\n{lines}")


def _list_problems(error: ValidationError) -> list[tuple[str, str]]:
    """Return (dotted path, message) of every mistake."""
    messages: dict[str, str] = {}
    for item in error.errors():
        if item["type"] == "too_short" and item["input"]:
            continue  # its items are wrong and have errors of their own
        path, message = _describe_problem(item)
        # Each member of a union (`auto | all | a number`) reports the same value.
        messages[path] = f"{messages[path].partition(' (found ')[0]}; or: {message}" if path in messages else message
    return list(messages.items())


def _describe_problem(item: Any) -> tuple[str, str]:
    """Return (dotted path, message) of one of pydantic's errors."""
    keys, value, kind = list(item["loc"]), item["input"], item["type"]
    context = item.get("ctx", {})
    heads = (".".join(map(str, keys[:count])) for count in (2, 1))
    position = next((METHOD_POSITIONS[head] for head in heads if head in METHOD_POSITIONS), len(keys))
    if len(keys) > position:
        del keys[position]
    path = ".".join(map(str, keys[:2] if keys[:2] == ["data", "labels_per_class"] else keys))
    if kind == "extra_forbidden":
        return path, "unknown key; remove it, or see params.yaml as shipped for the keys of this section"
    if kind == "missing":
        return path, "missing; every section of params.yaml as shipped is required"
    if kind == "union_tag_invalid":
        auto = f", {AUTO!r}" if path == "pretrain" else ""
        return f"{path}.method", f"{context['tag']!r} is not one of {context['expected_tags']}{auto}"
    if kind == "union_tag_not_found":
        return f"{path}.method", "missing; it names the method"
    message = PLAIN_MESSAGES.get(kind, str(item["msg"]).removeprefix("Value error, "))
    if isinstance(value, dict):
        return path, message
    return path, f"{message} (found {value!r})"
