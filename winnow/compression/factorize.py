"""Low-rank factorisation: replace wide layers by pairs of thin ones, then recover.

Every layer keeps the same share of its energy (the sum of squared singular values of its weights), so layers with
concentrated energy are reduced most. Bisection finds the share that removes the amount in `remove`. Layers that a pair
would not make cheaper stay as they are (winnow/models/low_rank_layers.py does the splitting). Half of the multiply-adds
is not half of the latency: two calls and an intermediate tensor cost time too; the benchmark measures how much.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from winnow.compression.method_inputs import MethodInputs
from winnow.compression.network_size import SIZE_MEASURES, macs_by_layer, size_metrics
from winnow.compression.recovery import recover
from winnow.config import Factorize
from winnow.errors import ConfigError
from winnow.models.attention import split_heads
from winnow.models.backbones import Architecture
from winnow.models.classifier_head import head_path
from winnow.models.low_rank_layers import factorizable_layers, factorize_layers
from winnow.models.network import Network
from winnow.records.method_results import FactorizeResult
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

Ranks = dict[str, int]
BISECTIONS = 12
"""Bisections of the interval of energy shares."""


def factorize(settings: Factorize, inputs: MethodInputs) -> tuple[Network, FactorizeResult]:
    """Factorise the layers of a copy of the parent and recover; return the network and what was done."""
    parent = inputs.parent.load()
    model, architecture = parent.model, parent.architecture
    split_heads(model)
    before = size_metrics(model, architecture, "before")
    ranks, energy = choose_ranks(model, architecture, settings)
    log.info("%d layers keep %.1f %% of their energy", len(ranks), energy * 100)
    architecture = apply_ranks(model, architecture, ranks)
    curves = recover(model, settings.recovery, inputs)
    sizes: dict[str, Any] = before | size_metrics(model, architecture, "after")
    return Network(model, architecture), FactorizeResult(curves=curves, ranks=ranks, energy=energy, **sizes)


@compute_lock()
def apply_ranks(model: nn.Module, architecture: Architecture, ranks: Ranks) -> Architecture:
    """Split layers to these ranks, in place, and return the new architecture."""
    split_heads(model)
    factorize_layers(model, ranks)
    return architecture.model_copy(update={"ranks": {**architecture.ranks, **ranks}})


@compute_lock()
def choose_ranks(model: nn.Module, architecture: Architecture, settings: Factorize) -> tuple[Ranks, float]:
    """Return (layer -> rank, share of energy kept) with the most energy for which the amount in `remove` is removed.

    Raises ConfigError where even rank `round_to` everywhere removes too little.
    """
    ((quantity, share),) = settings.remove.goal.items()
    assert isinstance(share, float)
    split_heads(model)
    layers = factorizable_layers(model, head_path(model))
    positions = dict.fromkeys(layers, 1)
    if quantity == "macs":
        macs = macs_by_layer(model, architecture)
        positions = {path: macs[path] // layer.weight.numel() for path, layer in layers.items()}
    energies = {path: _energies(layer.weight) for path, layer in layers.items()}
    total = SIZE_MEASURES[quantity](model, architecture)

    def ranks_at(energy: float) -> tuple[Ranks, int]:
        ranks, saved = {}, 0
        for path, layer in layers.items():
            needed = int((energies[path] < energy * energies[path][-1]).sum()) + 1
            rank = -(-needed // settings.round_to) * settings.round_to
            outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
            gain = outputs * inputs - rank * (outputs + inputs)
            if gain > 0:
                ranks[path], saved = rank, saved + gain * positions[path]
        return ranks, saved

    low, high = 0.0, 1.0
    if ranks_at(low)[1] < share * total:
        raise ConfigError(
            f"candidates: method factorize cannot remove {share:.0%} of the {quantity} of this "
            f"{architecture.backbone}: rank {settings.round_to} in every layer removes "
            f"{ranks_at(low)[1] / total:.0%}; remove less"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if ranks_at(middle)[1] >= share * total else (low, middle)
    return ranks_at(low)[0], low


def _energies(weight: torch.Tensor) -> torch.Tensor:
    """Return the cumulative sums of the squared singular values, largest first, (min(O, I),)."""
    singular: torch.Tensor = torch.linalg.svdvals(weight.detach().flatten(1).double())
    return singular.square().cumsum(0)
