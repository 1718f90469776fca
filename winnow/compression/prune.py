"""Structured pruning: channels that matter least leave, then the network recovers, taught by dense.

How much goes is said as a share of channels, parameters or multiply-adds, or as a latency
(winnow/compression/pruning_target.py); which channels go, by an importance (importance.py); how they are taken out, in
channels.py. In one cut, or in several with short recoveries between (`rounds`); with sparse learning before, which
shrinks what will go, so that less is lost in the cut (Fang et al. 2023, section 3.3).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.compression.channel_importance import prepare, pruning_library
from winnow.compression.channel_pruning import (
    EmptyPruning,
    PruningStep,
    counted,
    least_channels,
    parameters,
    remove_channels,
)
from winnow.compression.method_inputs import Inputs
from winnow.compression.pruning_target import ROUNDINGS, Budget, aim, goal_of
from winnow.compression.recovery import recover
from winnow.config import Prune
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.models.attention import take_heads_apart
from winnow.models.backbones import Architecture, load_model, replay, save_model
from winnow.models.classifier_head import head_path
from winnow.random_streams import stream_seed
from winnow.records import read_json, write_json
from winnow.training.loop import Hooks, Row


@dataclass(frozen=True)
class _PruningRun:
    """What all rounds share."""

    settings: Prune
    inputs: Inputs
    least: dict[str, int]
    """Channels that each layer of the parent keeps."""
    goal: Budget
    begin: float
    """The goal's quantity before the first cut."""


def prune(settings: Prune, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Prune the parent, recover, and leave weights, architecture and model.onnx in `folder` -> details."""
    model, architecture = load_model(inputs.parent)
    take_heads_apart(model)
    before = counted(model, architecture, "before")
    goal = goal_of(settings.remove, model, architecture)
    begin = goal.measure(model, architecture)
    if begin <= goal.limit:
        raise ConfigError(
            f"candidates: method prune: the {goal.name} of this {architecture.backbone} is {begin:.4g}, within the "
            f"{goal.limit:.4g} that is asked for, so there is nothing to remove; ask for less"
        )
    course = _PruningRun(settings, inputs, least_channels(model, settings.max_channels), goal, begin)
    curves_before: dict[str, list[Row]] = {}
    if settings.sparse_learning.epochs:
        curves_before["sparse learning"] = learn_sparsely(model, architecture, settings, inputs)
    cuts = []
    for number in range(1, settings.rounds + 1):
        architecture, told = _cut(course, model, architecture, number)
        cuts.append(told)
        if number < settings.rounds:
            short = settings.recovery.with_epochs(settings.round_epochs)
            curves_before[f"round {number}"] = recover(model, short, inputs, f"round-{number}")
    curves = recover(model, settings.recovery, inputs)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    return {
        "curves": curves,
        "curves_before": curves_before,
        "cuts": cuts,
        **before,
        **counted(model, architecture, "after"),
    }


def _cut(course: _PruningRun, model: nn.Module, architecture: Architecture, number: int) -> tuple[Architecture, Any]:
    """Round `number`, in place -> (the new architecture, what was tried).

    The amounts of all rounds lie on a line. Rounding takes more than was asked for: a round that finds its amount gone
    removes nothing. A cut that was made before a stop is made again from its history: a latency that is measured anew
    may name another share, and what was trained since would not fit.
    """
    settings, kept = course.settings, course.inputs.scratch / f"cut-{number}.json"
    if kept.is_file():
        made = read_json(kept)
        replay(model, architecture.image_size, made["history"])
        return architecture.model_copy(update={"pruning": [*architecture.pruning, *made["history"]]}), made["told"]
    criterion = prepare(model, settings.importance, course.inputs, stream_seed(settings.recovery.seed, "cut", number))
    rounding = 8 if settings.round_to == "measured" else settings.round_to
    cut = PruningStep(0.0, criterion, rounding, course.least)
    limit = course.begin + (course.goal.limit - course.begin) * number / settings.rounds
    now = course.begin if number == 1 else course.goal.measure(model, architecture)
    told: dict[str, Any] = {"goal": course.goal.name, "limit": limit, "before": now}
    after = architecture
    if now > limit:
        if settings.remove.channels:
            cut = dataclasses.replace(cut, share=1 - limit / now)
        else:
            roundings = ROUNDINGS if settings.round_to == "measured" else (rounding,)
            found = aim(model, architecture, dataclasses.replace(course.goal, limit=limit), cut, roundings)
            cut, told = found.cut, told | {"tried": found.tried}
        try:
            after = remove_channels(model, architecture, cut)
        except EmptyPruning:
            if number == 1:
                raise
            cut = dataclasses.replace(cut, share=0.0)  # rounds before it went as far as `max_channels` lets them
    told |= {"share": cut.share, "round_to": cut.round_to, "parameters": parameters(model)}
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, {"history": after.pruning[len(architecture.pruning) :], "told": told})
    return after, told


def learn_sparsely(model: nn.Module, architecture: Architecture, settings: Prune, inputs: Inputs) -> list[Row]:
    """Train with a penalty on whole groups that is larger the less they matter, in place -> curves.

    Group regularisation, Fang et al. 2023 (arXiv 2301.12900, equation 5): at every step the gradient of each weight of
    a group gets strength * 2^(4 (max - importance) / (max - min)) times the weight added.
    """
    model.eval().requires_grad_(True)
    if any(isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels for module in model.modules()):
        raise ConfigError(
            f"candidates: method prune: sparse_learning cannot follow the grouped convolutions of a "
            f"{architecture.backbone}; leave it out"
        )
    library = pruning_library()
    side = architecture.image_size
    pruner = library.pruner.GroupNormPruner(
        model,
        torch.zeros(1, 3, side, side),
        importance=library.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        reg=settings.sparse_learning.strength,
        global_pruning=True,
        ignored_layers=[model.get_submodule(head_path(model))],
        num_heads={},
        out_channel_groups={},
    )

    def shrink(trained: nn.Module, _step: int) -> None:
        pruner.regularize(trained)

    longer = settings.recovery.with_epochs(settings.sparse_learning.epochs)
    return recover(model, longer, inputs, "sparse-learning", Hooks(after_backward=shrink))
