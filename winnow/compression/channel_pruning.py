"""Structured pruning: whole channels and attention heads leave the network.

Dependencies between layers come from torch-pruning (Fang et al. 2023, DepGraph, arXiv 2301.12900). Channels are ranked
over the whole network, groups of equal structure among themselves (`isomorphic`, Fang et al. 2024, arXiv 2407.04616).
Counts stay multiples of `round_to`: odd ones are slower than the network they came from. What was removed is kept as
torch-pruning's history in architecture.json, so the network is rebuilt without pickle.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from winnow.compression.channel_importance import Criterion, pruning_library
from winnow.errors import ConfigError
from winnow.models.attention import HeadwiseAttention, heads_of, take_heads_apart
from winnow.models.backbones import Architecture, settle
from winnow.models.classifier_head import head_path
from winnow.models.layers import layers_of


@dataclass(frozen=True)
class PruningStep:
    """One cut: what share of all channels goes, ranked how, and what must stay."""

    share: float
    criterion: Criterion
    round_to: int
    least: Mapping[str, int]
    """Layer -> channels that it must keep."""


class UnsupportedPruning(ConfigError):
    """This network, or this amount: the message says which."""


class EmptyPruning(UnsupportedPruning):
    """Every layer is too narrow for the rounding, or too little was asked for."""


def least_channels(model: nn.Module, max_channels: float) -> dict[str, int]:
    """What `max_channels` leaves of each layer -> channels. Takes attention's heads apart, in place."""
    take_heads_apart(model)
    sizes = {path: int(layer.weight.shape[0]) for path, layer in layers_of(model).items()}
    return {path: size - int(size * max_channels + 1e-9) for path, size in sizes.items()}


def remove_channels(model: nn.Module, architecture: Architecture, cut: PruningStep) -> Architecture:
    """Remove channels from `model`, in place, and return its new architecture.

    Raises Uncuttable when nothing can be removed (every layer is too narrow for `round_to` and `least`) and for
    networks that torch-pruning cannot follow.
    """
    before = parameters(model)
    take_heads_apart(model)
    if any("Attention" in type(module).__name__ for module in set(model.modules()) - _headwise(model)):
        raise UnsupportedPruning(_unfit(architecture, "its attention's heads cannot be removed"))
    try:
        pruner = _pruner(model, architecture, cut)
        pruner.DG.check_pruning_group = lambda _group: True  # _limited sees to it
        for group in pruner.step(interactive=True):
            _limited(pruner, group, cut).prune()
        settle(model)
        model(_example(architecture))
    except (RuntimeError, ArithmeticError, AttributeError) as error:
        raise UnsupportedPruning(_unfit(architecture, " ".join(str(error).split())[:200])) from error
    if parameters(model) == before:
        raise EmptyPruning(
            f"candidates: method prune, asked for {cut.share:.0%} of the channels with round_to: {cut.round_to}, "
            f"removes nothing from this {architecture.backbone}; remove more, or lower round_to"
        )
    made = [[name, bool(out), [int(index) for index in indexes]] for name, out, indexes in pruner.pruning_history()]
    return architecture.model_copy(update={"pruning": [*architecture.pruning, *made]})


def parameters(model: nn.Module) -> int:
    """How many."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, architecture: Architecture) -> int:
    """Of convolutions and linear layers, for one image."""
    return sum(macs_by_layer(model, architecture).values())


def macs_by_layer(model: nn.Module, architecture: Architecture) -> dict[str, int]:
    """Convolution or linear layer -> multiply-adds for one image: each weight once for every place of the output."""
    layers: dict[nn.Module, str] = {layer: path for path, layer in layers_of(model).items()}
    found = dict.fromkeys(layers.values(), 0)

    def count(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        places = math.prod(output.shape[2:]) if isinstance(module, nn.Conv2d) else output.numel() // output.shape[-1]
        found[layers[module]] += module.weight.numel() * places

    def count_windows(module: Any, inputs: Any, _output: Any) -> None:
        """Swin reads the weights of these two without calling them, at each place of its padded windows."""
        sides = zip(inputs[0].shape[1:3], module.window_size, strict=True)
        places = math.prod(math.ceil(side / window) * window for side, window in sides)
        for layer in (module.qkv, module.proj):
            found[layers[layer]] += layer.weight.numel() * places

    hooks = [layer.register_forward_hook(count) for layer in layers]
    windowed = [module for module in model.modules() if isinstance(module, ShiftedWindowAttention)]
    hooks += [module.register_forward_hook(count_windows) for module in windowed]
    try:
        with torch.inference_mode():
            model.eval()(_example(architecture))
    finally:
        for hook in hooks:
            hook.remove()
    return found


COUNTS: dict[str, Callable[[nn.Module, Architecture], int]] = {
    "parameters": lambda model, _architecture: parameters(model),
    "macs": multiply_adds,
}
"""What `remove` may name, beside channels and a latency."""


def counted(model: nn.Module, architecture: Architecture, when: str) -> dict[str, int]:
    """{parameters_WHEN, macs_WHEN}, for a record."""
    return {f"{name}_{when}": count(model, architecture) for name, count in COUNTS.items()}


@dataclass(frozen=True)
class LayerGroup:
    """Layers of which the same channels have to go: those whose outputs are added, say."""

    layers: tuple[str, ...]
    """The first is where a cut begins."""

    def remove_least(self, model: nn.Module, architecture: Architecture, share: float) -> None:
        """Remove this share of their channels, those of least magnitude, at least one, in place."""
        library = pruning_library()
        graph = library.DependencyGraph().build_dependency(model.eval(), _example(architecture))
        layer = model.get_submodule(self.layers[0])
        handler = graph.get_pruner_of_module(layer).prune_out_channels
        channels = graph.get_out_channels(layer)
        whole = graph.get_pruning_group(layer, handler, list(range(channels)))
        with torch.no_grad():
            scores = Criterion("magnitude", 0).scorer()(whole)
        assert scores is not None
        scores_BC = scores.view(_blocks(whole), -1)
        size = scores_BC.shape[1]
        chosen = _least_of_each(scores_BC, min(size - 1, max(1, round(share * size))))
        graph.get_pruning_group(layer, handler, chosen).prune()
        settle(model)


def _blocks(group: Any) -> int:
    """Parts of the channels that lose the same ones each: those of grouped convolutions."""
    convolutions = [part.target.module for part, _ in group if isinstance(part.target.module, nn.Conv2d)]
    return max((each.groups for each in convolutions if each.groups < each.in_channels), default=1)


def _least_of_each(scores_BC: torch.Tensor, count: int) -> list[int]:
    """Positions of the same `count` channels in every block, those of the least mean score."""
    blocks, size = scores_BC.shape
    least = scores_BC.mean(0).argsort()[:count].tolist()
    return sorted(block * size + at for block in range(blocks) for at in least)


def prunable_groups(model: nn.Module, architecture: Architecture) -> list[LayerGroup]:
    """All groups of layers whose channels can go; attention's inner width, which goes by heads, is left out."""
    library = pruning_library()
    graph = library.DependencyGraph().build_dependency(model.eval().requires_grad_(True), _example(architecture))
    names = {module: path for path, module in model.named_modules()}
    inside = set(heads_of(model))
    found = []
    for group in graph.get_all_groups(ignored_layers=[model.get_submodule(head_path(model))]):
        outs = [part.target.module for part, _ in group if graph.is_out_channel_pruning_fn(part.handler)]
        if inside & set(outs):
            continue
        layers = [names[module] for module in outs if isinstance(module, nn.Conv2d | nn.Linear)]
        if layers:
            found.append(LayerGroup(tuple(dict.fromkeys(layers))))
    return found


def root_channels(model: nn.Module, architecture: Architecture) -> int:
    """Channels that can go, those that go together counted once: what a share of the channels is a share of."""
    layers = layers_of(model)
    return sum(int(layers[group.layers[0]].weight.shape[0]) for group in prunable_groups(model, architecture))


def copy_with_gradients(model: nn.Module) -> nn.Module:
    """To try a cut on: deepcopy leaves gradients behind."""
    twin = copy.deepcopy(model)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        its.grad = None if mine.grad is None else mine.grad.clone()
    return twin


def _example(architecture: Architecture) -> torch.Tensor:
    return torch.zeros(1, 3, architecture.image_size, architecture.image_size)


def _headwise(model: nn.Module) -> set[nn.Module]:
    return {module for module in model.modules() if isinstance(module, HeadwiseAttention)}


def _pruner(model: nn.Module, architecture: Architecture, cut: PruningStep) -> Any:
    model.eval().requires_grad_(True)
    heads = heads_of(model)
    return pruning_library().pruner.BasePruner(
        model,
        _example(architecture),
        importance=cut.criterion.scorer(),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=cut.share,
        round_to=cut.round_to,
        ignored_layers=[model.get_submodule(head_path(model))],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio=cut.share if heads else 0.0,
        out_channel_groups={},
    )


def _limited(pruner: Any, group: Any, cut: PruningStep) -> Any:
    """The group of channels to remove, or its least important ones where a layer would lose more than it may.

    torch-pruning checks a limit of its own before a cut, not after it, and leaves a layer whole of which all would go.
    """
    dependency, indexes = group[0]
    layer, handler = dependency.target.module, dependency.handler
    out = pruner.DG.is_out_channel_pruning_fn(handler)
    channels = pruner.DG.get_out_channels(layer) if out else pruner.DG.get_in_channels(layer)
    units, staying = _units(pruner, group, channels, cut)
    if channels - len(indexes) >= staying:
        return group
    whole = pruner.DG.get_pruning_group(layer, handler, list(range(channels)))
    # Whole heads go, and grouped convolutions lose the same channels of every group: (blocks, channels of a block).
    scores_BC = pruner.estimate_importance(whole).view(units.blocks, -1)
    going, size = max(0, channels - staying), scores_BC.shape[1]
    if units.whole_blocks:
        least = scores_BC.mean(1).argsort()[: going // size].tolist()
        chosen = sorted(block * size + at for block in least for at in range(size))
    else:
        chosen = _least_of_each(scores_BC, going // units.blocks)
    return pruner.DG.get_pruning_group(layer, handler, chosen)


@dataclass(frozen=True)
class _Units:
    """How the channels of a group hang together."""

    blocks: int
    whole_blocks: bool
    """Attention heads: a block goes or stays. Else every block loses the same channels."""


def _units(pruner: Any, group: Any, channels: int, cut: PruningStep) -> tuple[_Units, int]:
    """(how they hang together, how many channels must stay)."""
    names = {module: path for path, module in pruner.model.named_modules()}
    targets = [part.target.module for part, _ in group if pruner.DG.is_out_channel_pruning_fn(part.handler)]
    heads = heads_of(pruner.model)
    queries = [module for module in targets if module in heads]
    least = min(channels, max((cut.least.get(names.get(module, ""), 1) for module in targets), default=1))
    if queries:
        size = channels // heads[queries[0]]
        return _Units(channels // size, True), math.ceil(least / size) * size
    return _Units(_blocks(group), False), math.ceil(least / cut.round_to) * cut.round_to


def _unfit(architecture: Architecture, reason: str) -> str:
    return (
        f"candidates: method prune does not fit a {architecture.backbone} ({reason}); remove the candidate, or set "
        "pretrain.backbone to a plain convolutional network such as resnet18"
    )
