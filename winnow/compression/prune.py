"""Structured pruning: whole channels are removed, so the network is smaller and faster on any runtime.

Dependencies between layers come from torch-pruning (Fang et al. 2023, DepGraph, arXiv 2301.12900). Channels are ranked
over the whole network by the group magnitude (L2 norm of everything that would go with the channel, relative to the
mean of its layer), groups of equal structure among themselves (`isomorphic`, Fang et al. 2024, arXiv 2407.04616).
Counts stay multiples of `round_to`: odd ones are slower than the network they came from. What was removed is kept as
torch-pruning's history in architecture.json, so the network is rebuilt without pickle. Then it recovers, taught by
dense.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.compression.inputs import Inputs
from winnow.compression.recovery import recover
from winnow.config import Prune
from winnow.errors import ConfigError, MissingExtra
from winnow.export import export_onnx
from winnow.model_file import MODEL
from winnow.models.backbones import Architecture, load_model, save_model
from winnow.models.heads import head_path


def prune(settings: Prune, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Prune the parent, recover, and leave weights, architecture and model.onnx in `folder` -> details."""
    model, architecture = load_model(inputs.parent)
    before = sum(parameter.numel() for parameter in model.parameters())
    architecture = remove_channels(model, architecture, settings)
    after = sum(parameter.numel() for parameter in model.parameters())
    curves = recover(model, settings.recovery, inputs)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    return {"curves": curves, "parameters_before": before, "parameters_after": after}


def remove_channels(model: nn.Module, architecture: Architecture, settings: Prune) -> Architecture:
    """Remove channels from `model`, in place, and return its new architecture.

    Raises ConfigError when nothing can be removed (every layer is too narrow for `round_to` and `max_channels`) and for
    networks whose layers are not only convolutions.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtra("torch-pruning", "compress") from error
    if any("Attention" in type(module).__name__ for module in model.modules()):
        raise ConfigError(_unfit(architecture, "attention heads cannot lose channels one by one"))
    before = sum(parameter.numel() for parameter in model.parameters())
    example = torch.zeros(1, 3, architecture.image_size, architecture.image_size)
    model.eval().requires_grad_(True)
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(
                p=2, group_reduction="mean", normalizer="mean"
            ),
            global_pruning=True,
            isomorphic=True,
            pruning_ratio=min(settings.channels, settings.max_channels),
            max_pruning_ratio=settings.max_channels,
            round_to=settings.round_to,
            ignored_layers=[model.get_submodule(head_path(model))],
            num_heads={},
            out_channel_groups={},
        )
        for group in pruner.step(interactive=True):
            _capped(pruner, group, settings).prune()
        model(example)
    except (RuntimeError, ArithmeticError) as error:
        raise ConfigError(_unfit(architecture, " ".join(str(error).split())[:200])) from error
    if sum(parameter.numel() for parameter in model.parameters()) == before:
        raise ConfigError(
            f"candidates: method prune with channels: {settings.channels} and round_to: {settings.round_to} removes "
            f"nothing from this {architecture.backbone}; raise channels, or lower round_to"
        )
    made = [[name, bool(out), [int(index) for index in indexes]] for name, out, indexes in pruner.pruning_history()]
    return architecture.model_copy(update={"pruning": [*architecture.pruning, *made]})


def _capped(pruner: Any, group: Any, settings: Prune) -> Any:
    """The group of channels to remove, or its least important ones where a layer would lose more than `max_channels`.

    torch-pruning checks its own limit before a cut, not after it: one large cut goes through.
    """
    dependency, indexes = group[0]
    layer, cut = dependency.target.module, dependency.handler
    channels = pruner.DG.get_out_channels(layer)
    most = int(channels * settings.max_channels + 1e-9)
    staying = math.ceil((channels - most) / settings.round_to) * settings.round_to
    if channels - len(indexes) >= staying:
        return group
    # Grouped convolutions lose the same channels of every group.
    convolutions = [part.target.module for part, _ in group if isinstance(part.target.module, nn.Conv2d)]
    groups = max((each.groups for each in convolutions if each.groups < each.in_channels), default=1)
    whole = pruner.DG.get_pruning_group(layer, cut, list(range(channels)))
    importance_GC = pruner.estimate_importance(whole).view(groups, -1)
    least = importance_GC.mean(0).argsort()[: max(0, channels - staying) // groups].tolist()
    size = importance_GC.shape[1]
    return pruner.DG.get_pruning_group(layer, cut, [index + size * at for at in range(groups) for index in least])


def _unfit(architecture: Architecture, reason: str) -> str:
    return (
        f"candidates: method prune does not fit a {architecture.backbone} ({reason}); remove the candidate, or set "
        "pretrain.backbone to a plain convolutional network such as resnet18"
    )
