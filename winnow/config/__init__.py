"""params.yaml as frozen models, checked whole at load: every mistake at once, each with path, value and choices.

    config = load_config("params.yaml")
    config.pretrain.epochs

Imports no torch, so that `winnow status` and an unchanged run stay quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from winnow.config.benchmark import Benchmark
from winnow.config.candidates import (
    CONTROL,
    ROOT,
    AnyCandidate,
    Candidate,
    Distill,
    Prune,
    Quantize,
    Recovery,
    Sparsify,
    in_order,
    tree_errors,
)
from winnow.config.data import Data
from winnow.config.finetune import Finetune
from winnow.config.pretrain import NoPretraining, Pretrain, RotNet, SimCLR
from winnow.config.promotion import Gates, Promotion
from winnow.config.section import Augmentation, Optimiser, Section
from winnow.errors import ConfigError

__all__ = [
    "CONTROL",
    "ROOT",
    "AnyCandidate",
    "Augmentation",
    "Benchmark",
    "Candidate",
    "Config",
    "Data",
    "Distill",
    "Finetune",
    "Gates",
    "NoPretraining",
    "Optimiser",
    "Pretrain",
    "Promotion",
    "Prune",
    "Quantize",
    "Recovery",
    "RotNet",
    "SimCLR",
    "Sparsify",
    "check_config",
    "in_order",
    "load_config",
]


class Config(Section):
    """All of params.yaml; one section per step."""

    data: Data
    pretrain: Pretrain
    finetune: Finetune
    candidates: dict[str, AnyCandidate]
    benchmark: Benchmark
    promotion: Promotion


def load_config(path: str | Path) -> Config:
    """Read and check params.yaml. Raises ConfigError that lists every mistake."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); run winnow from the project's folder") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return check_config(raw, str(path))


def check_config(raw: Any, where: str = "params.yaml") -> Config:
    """Check an already parsed params.yaml; `where` names it in the message."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected sections (data, pretrain, ...), found {type(raw).__name__}")
    problems: list[tuple[str, str]] = []
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems = [_readable(item) for item in error.errors()]
    else:
        problems = tree_errors(dict(config.candidates))
        if not problems:
            return config
    lines = "\n".join(f"  {path}: {message}" for path, message in problems)
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    raise ConfigError(f"{where} has {count}:\n{lines}")


def _readable(item: Any) -> tuple[str, str]:
    """One pydantic error as (dotted path, message). Tags of unions in the location are not keys of the file."""
    location, value, kind = item["loc"], item["input"], item["type"]
    context = item.get("ctx", {})
    tags = {"rotnet", "simclr", "none", "prune", "sparsify", "quantize", "distill"}
    keys = [str(part) for at, part in enumerate(location) if not (str(part) in tags and at in (1, 2))]
    keys = [key for key in keys if not key.startswith(("literal[", "function-", "constrained-"))]
    path = ".".join(keys) or "params.yaml"
    if kind == "extra_forbidden":
        return path, "unknown key; remove it, or see params.yaml as shipped for the keys of this section"
    if kind == "missing":
        return path, "missing; every section of params.yaml as shipped must be there"
    if kind == "union_tag_invalid":
        return f"{path}.method", f"{context['tag']!r} is none of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{path}.method", "missing; it says which method this is"
    message = str(item["msg"]).removeprefix("Value error, ")
    if isinstance(value, dict):
        return path, message
    return path, f"{message} (found {value!r})"
