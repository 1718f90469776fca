"""Structured pruning: remove the least important channels, then recover.

The amount is a share of channels, parameters or multiply-adds, or a latency (winnow/compression/pruning_target.py). An
importance criterion ranks the channels (channel_importance.py), and channel_pruning.py removes them. Pruning takes one
round, or several with short recoveries between them (`rounds`). Sparse learning may precede it: it shrinks the weights
that will be removed, so that less accuracy is lost (Fang et al. 2023, section 3.3).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from winnow.compression.channel_importance import import_torch_pruning, prepare_criterion
from winnow.compression.channel_pruning import EmptyPruning, PruningStep, min_channels_by_layer, remove_channels
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.network_size import count_parameters, size_metrics
from winnow.compression.pruning_target import ROUNDINGS, Budget, make_budget, plan_pruning
from winnow.compression.recovery import recover
from winnow.config import Prune
from winnow.errors import ConfigError
from winnow.models.attention import split_heads
from winnow.models.backbones import Architecture, replay_pruning
from winnow.models.classifier_head import head_path
from winnow.models.network import Network
from winnow.random_streams import stream_seed
from winnow.records import CurveRow, read_json, write_json
from winnow.records.method_results import PruneResult, PruningCut, PruningTrial
from winnow.training.loop import Hooks


@dataclass(frozen=True)
class _PruningRun:
    """The state that all rounds of one pruning share."""

    settings: Prune
    inputs: MethodInputs
    min_channels: dict[str, int]
    """Channels that each layer of the parent keeps."""
    budget: Budget
    initial: float
    """The budget's quantity before the first round."""


def prune(settings: Prune, inputs: MethodInputs) -> tuple[Network, PruneResult]:
    """Prune a copy of the parent and recover; return the network and what was done.

    Raises ConfigError where there is nothing to remove, or the target cannot be reached.
    """
    parent = inputs.parent.load()
    model, architecture = parent.model, parent.architecture
    split_heads(model)
    before = size_metrics(model, architecture, "before")
    budget = make_budget(settings.remove, model, architecture)
    initial = budget.measure(model, architecture)
    if initial <= budget.limit:
        raise ConfigError(
            f"candidates: method prune: the {budget.name} of this {architecture.backbone} is {initial:.4g}, already at "
            f"or below the target of {budget.limit:.4g}, so there is nothing to remove; set a smaller target"
        )
    run = _PruningRun(settings, inputs, min_channels_by_layer(model, settings.max_channels), budget, initial)
    curves_before: dict[str, list[CurveRow]] = {}
    if settings.sparse_learning.epochs:
        curves_before["sparse learning"] = train_with_group_sparsity(model, architecture, settings, inputs)
    cuts = []
    for number in range(1, settings.rounds + 1):
        architecture, row = _prune_round(run, model, architecture, number)
        cuts.append(row)
        if number < settings.rounds:
            short_recovery = settings.recovery.with_epochs(settings.round_epochs)
            curves_before[f"round {number}"] = recover(model, short_recovery, inputs, f"round-{number}")
    curves = recover(model, settings.recovery, inputs)
    sizes: dict[str, Any] = before | size_metrics(model, architecture, "after")
    return Network(model, architecture), PruneResult(curves=curves, curves_before=curves_before, cuts=cuts, **sizes)


def _prune_round(
    run: _PruningRun, model: nn.Module, architecture: Architecture, number: int
) -> tuple[Architecture, PruningCut]:
    """Prune the network in round `number`, in place, and return (the new architecture, the row for the record).

    The budgets of the rounds decrease linearly. Rounding removes more than requested, so a round whose budget
    is already met removes nothing. A round that was finished before an interruption is replayed from its saved history:
    a new latency measurement may give another share, and the weights trained since then would not fit.
    """
    settings, file = run.settings, run.inputs.scratch / f"cut-{number}.json"
    if file.is_file():
        saved = read_json(file)
        replay_pruning(model, architecture.image_size, saved["history"])
        replayed = architecture.model_copy(update={"pruning": [*architecture.pruning, *saved["history"]]})
        return replayed, PruningCut.model_validate(saved.get("cut") or saved["told"])  # "told": by an earlier version
    criterion = prepare_criterion(
        model, settings.importance, run.inputs, stream_seed(settings.recovery.seed, "cut", number)
    )
    rounding = 8 if settings.round_to == "measured" else settings.round_to
    step = PruningStep(0.0, criterion, rounding, run.min_channels)
    limit = run.initial + (run.budget.limit - run.initial) * number / settings.rounds
    current = run.initial if number == 1 else run.budget.measure(model, architecture)
    tried: list[PruningTrial] = []
    pruned = architecture
    if current > limit:
        if settings.remove.channels:
            step = dataclasses.replace(step, share=1 - limit / current)
        else:
            roundings = ROUNDINGS if settings.round_to == "measured" else (rounding,)
            plan = plan_pruning(model, architecture, dataclasses.replace(run.budget, limit=limit), step, roundings)
            step, tried = plan.cut, plan.tried
        try:
            pruned = remove_channels(model, architecture, step)
        except EmptyPruning:
            if number == 1:
                raise
            step = dataclasses.replace(step, share=0.0)  # earlier rounds have reached `max_channels`
    row = PruningCut(
        goal=run.budget.name,
        limit=limit,
        before=current,
        tried=tried,
        share=step.share,
        round_to=step.round_to,
        parameters=count_parameters(model),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"history": pruned.pruning[len(architecture.pruning) :], "cut": row.model_dump(mode="json")})
    return pruned, row


def train_with_group_sparsity(
    model: nn.Module, architecture: Architecture, settings: Prune, inputs: MethodInputs
) -> list[CurveRow]:
    """Train with a penalty on whole groups, larger for less important ones, in place; return the curves.

    Group regularisation, Fang et al. 2023 (arXiv 2301.12900, equation 5): at every step the gradient of each weight of
    a group gets strength * 2^(4 (max - importance) / (max - min)) times the weight added. Raises ConfigError for
    grouped convolutions.
    """
    model.eval().requires_grad_(True)
    if any(isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels for module in model.modules()):
        raise ConfigError(
            f"candidates: method prune: sparse_learning does not support the grouped convolutions of "
            f"a {architecture.backbone}; remove sparse_learning"
        )
    library = import_torch_pruning()
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

    def shrink(network: nn.Module, _step: int) -> None:
        pruner.regularize(network)

    recovery = settings.recovery.with_epochs(settings.sparse_learning.epochs)
    return recover(model, recovery, inputs, "sparse-learning", Hooks(after_backward=shrink))
