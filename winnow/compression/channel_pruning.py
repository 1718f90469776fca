"""Structured pruning: remove whole channels and attention heads from a network.

Dependencies between layers come from torch-pruning (Fang et al. 2023, DepGraph, arXiv 2301.12900). Channels are ranked
over the whole network, groups of equal structure among themselves (`isomorphic`, Fang et al. 2024, arXiv 2407.04616).
Channel counts stay multiples of `round_to`, since odd counts can be slower than the original network. torch-pruning's
history of what was removed is saved in architecture.json, so the network is rebuilt without pickle.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from winnow.compression.channel_importance import Criterion, import_torch_pruning
from winnow.compression.network_size import count_parameters, example_input
from winnow.errors import ConfigError
from winnow.models.attention import HeadwiseAttention, attention_heads, split_heads
from winnow.models.backbones import Architecture, update_width
from winnow.models.classifier_head import head_path
from winnow.models.layers import weight_layers


@dataclass(frozen=True)
class PruningStep:
    """One pruning step: the share of channels to remove, how they are ranked, and what each layer keeps."""

    share: float
    criterion: Criterion
    round_to: int
    min_channels: Mapping[str, int]
    """Layer -> channels that it must keep."""


class UnsupportedPruning(ConfigError):
    """The network, or the amount to remove, cannot be pruned; the message says which."""


class EmptyPruning(UnsupportedPruning):
    """Nothing can be removed: every layer is too narrow for the rounding, or the amount is too small."""


def min_channels_by_layer(model: nn.Module, max_channels: float) -> dict[str, int]:
    """Return layer -> channels that `max_channels` leaves of it. Takes attention heads apart, in place."""
    split_heads(model)
    sizes = {path: int(layer.weight.shape[0]) for path, layer in weight_layers(model).items()}
    return {path: size - int(size * max_channels + 1e-9) for path, size in sizes.items()}


def remove_channels(model: nn.Module, architecture: Architecture, step: PruningStep) -> Architecture:
    """Remove channels from `model`, in place, and return its new architecture.

    Raises EmptyPruning when nothing can be removed (every layer is too narrow for `round_to` and `least`), and
    UnsupportedPruning for networks that torch-pruning cannot follow.
    """
    before = count_parameters(model)
    split_heads(model)
    if any("Attention" in type(module).__name__ for module in set(model.modules()) - _headwise(model)):
        raise UnsupportedPruning(_unsupported(architecture, "its attention heads cannot be removed"))
    try:
        pruner = _pruner(model, architecture, step)
        pruner.DG.check_pruning_group = lambda _group: True  # _limited applies the limit
        for group in pruner.step(interactive=True):
            _limited(pruner, group, step).prune()
        update_width(model)
        model(example_input(architecture))
    except (RuntimeError, ArithmeticError, AttributeError) as error:
        raise UnsupportedPruning(_unsupported(architecture, " ".join(str(error).split())[:200])) from error
    if count_parameters(model) == before:
        raise EmptyPruning(
            f"candidates: method prune: removing {step.share:.0%} of the channels with round_to: {step.round_to} "
            f"leaves this {architecture.backbone} unchanged; remove more, or lower round_to"
        )
    history = [
        [name, bool(is_output), [int(index) for index in indexes]]
        for name, is_output, indexes in pruner.pruning_history()
    ]
    return architecture.model_copy(update={"pruning": [*architecture.pruning, *history]})


@dataclass(frozen=True)
class LayerGroup:
    """Layers that must lose the same channels, for example because their outputs are added."""

    layers: tuple[str, ...]
    """Pruning starts at the first one."""

    def remove_least(self, model: nn.Module, architecture: Architecture, share: float) -> None:
        """Remove this share of the channels, those of least magnitude, at least one, in place."""
        library = import_torch_pruning()
        graph = library.DependencyGraph().build_dependency(model.eval(), example_input(architecture))
        layer = model.get_submodule(self.layers[0])
        prune_outputs = graph.get_pruner_of_module(layer).prune_out_channels
        channels = graph.get_out_channels(layer)
        full_group = graph.get_pruning_group(layer, prune_outputs, list(range(channels)))
        with torch.no_grad():
            scores = Criterion("magnitude", 0).scorer()(full_group)
        assert scores is not None
        scores_BC = scores.view(_blocks(full_group), -1)
        size = scores_BC.shape[1]
        chosen = _least_of_each(scores_BC, min(size - 1, max(1, round(share * size))))
        graph.get_pruning_group(layer, prune_outputs, chosen).prune()
        update_width(model)


def _blocks(group: Any) -> int:
    """Return the number of blocks of channels that must lose the same positions: those of grouped convolutions."""
    layers = [part.target.module for part, _ in group if isinstance(part.target.module, nn.Conv2d)]
    return max((layer.groups for layer in layers if layer.groups < layer.in_channels), default=1)


def _least_of_each(scores_BC: torch.Tensor, count: int) -> list[int]:
    """Return the positions of the same `count` channels in every block, those of the least mean score."""
    blocks, size = scores_BC.shape
    least = scores_BC.mean(0).argsort()[:count].tolist()
    return sorted(block * size + position for block in range(blocks) for position in least)


def prunable_groups(model: nn.Module, architecture: Architecture) -> list[LayerGroup]:
    """Return all groups of layers whose channels can be removed, without attention's inner width (removed by heads)."""
    library = import_torch_pruning()
    graph = library.DependencyGraph().build_dependency(model.eval().requires_grad_(True), example_input(architecture))
    names = {module: path for path, module in model.named_modules()}
    attention_modules = set(attention_heads(model))
    groups = []
    for group in graph.get_all_groups(ignored_layers=[model.get_submodule(head_path(model))]):
        output_layers = [part.target.module for part, _ in group if graph.is_out_channel_pruning_fn(part.handler)]
        if attention_modules & set(output_layers):
            continue
        layers = [names[module] for module in output_layers if isinstance(module, nn.Conv2d | nn.Linear)]
        if layers:
            groups.append(LayerGroup(tuple(dict.fromkeys(layers))))
    return groups


def count_prunable_channels(model: nn.Module, architecture: Architecture) -> int:
    """Return the number of prunable channels, coupled ones counted once: a share of channels refers to it."""
    layers = weight_layers(model)
    return sum(int(layers[group.layers[0]].weight.shape[0]) for group in prunable_groups(model, architecture))


def copy_with_gradients(model: nn.Module) -> nn.Module:
    """Return a deep copy of `model` with its gradients, which deepcopy leaves out."""
    copied = copy.deepcopy(model)
    for parameter, copied_parameter in zip(model.parameters(), copied.parameters(), strict=True):
        copied_parameter.grad = None if parameter.grad is None else parameter.grad.clone()
    return copied


def _headwise(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if isinstance(module, HeadwiseAttention)}


def _pruner(model: nn.Module, architecture: Architecture, step: PruningStep) -> Any:
    model.eval().requires_grad_(True)
    heads = attention_heads(model)
    return import_torch_pruning().pruner.BasePruner(
        model,
        example_input(architecture),
        importance=step.criterion.scorer(),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=step.share,
        round_to=step.round_to,
        ignored_layers=[model.get_submodule(head_path(model))],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio=step.share if heads else 0.0,
        out_channel_groups={},
    )


def _limited(pruner: Any, group: Any, step: PruningStep) -> Any:
    """Return the group of channels to remove, or its least important ones where a layer would lose too many.

    torch-pruning checks its own limit before a step, not after it, and skips a layer that would lose all its channels.
    """
    dependency, indexes = group[0]
    layer, handler = dependency.target.module, dependency.handler
    is_output = pruner.DG.is_out_channel_pruning_fn(handler)
    channels = pruner.DG.get_out_channels(layer) if is_output else pruner.DG.get_in_channels(layer)
    units, remaining = _units(pruner, group, channels, step)
    if channels - len(indexes) >= remaining:
        return group
    full_group = pruner.DG.get_pruning_group(layer, handler, list(range(channels)))
    # (blocks, channels of a block): heads are removed whole, grouped convolutions lose the same channels of each block.
    scores_BC = pruner.estimate_importance(full_group).view(units.blocks, -1)
    removed, size = max(0, channels - remaining), scores_BC.shape[1]
    if units.whole_blocks:
        least = scores_BC.mean(1).argsort()[: removed // size].tolist()
        chosen = sorted(block * size + position for block in least for position in range(size))
    else:
        chosen = _least_of_each(scores_BC, removed // units.blocks)
    return pruner.DG.get_pruning_group(layer, handler, chosen)


@dataclass(frozen=True)
class _Units:
    """The blocks of channels that can only be removed together."""

    blocks: int
    whole_blocks: bool
    """True for attention heads, which are removed as a whole; otherwise every block loses the same channels."""


def _units(pruner: Any, group: Any, channels: int, step: PruningStep) -> tuple[_Units, int]:
    """Return (the blocks of a group, the number of channels that must remain)."""
    names = {module: path for path, module in pruner.model.named_modules()}
    targets = [part.target.module for part, _ in group if pruner.DG.is_out_channel_pruning_fn(part.handler)]
    heads = attention_heads(pruner.model)
    queries = [module for module in targets if module in heads]
    least = min(channels, max((step.min_channels.get(names.get(module, ""), 1) for module in targets), default=1))
    if queries:
        size = channels // heads[queries[0]]
        return _Units(channels // size, True), math.ceil(least / size) * size
    return _Units(_blocks(group), False), math.ceil(least / step.round_to) * step.round_to


def _unsupported(architecture: Architecture, reason: str) -> str:
    """Return the error message for a backbone that cannot be pruned."""
    return (
        f"candidates: method prune does not fit a {architecture.backbone} ({reason}); remove the candidate, or set "
        "pretrain.backbone to a plain convolutional network such as resnet18"
    )
