"""Low-rank factorisation: wide layers become two thin ones, then the network recovers, taught by dense.

Each layer keeps the same share of its energy (the sum of squared singular values of its weights), so layers that hold
little in many directions are cut most; that share is searched for until the amount that `remove` names is gone. Layers
that a pair would not make cheaper stay (winnow/models/low_rank_layers.py does the splitting). Half of the multiply-adds
in two layers is not half of the time: two calls and an intermediate map cost, too, and the benchmark says how much.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.compression.channel_pruning import COUNTS, counted, macs_by_layer
from winnow.compression.method_inputs import Inputs
from winnow.compression.recovery import recover
from winnow.config import Factorize
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.models.attention import take_heads_apart
from winnow.models.backbones import Architecture, load_model, save_model
from winnow.models.classifier_head import head_path
from winnow.models.low_rank_layers import factorizable, split
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

Ranks = dict[str, int]
STEPS = 12
"""Halvings of the interval of energies."""


def factorize(settings: Factorize, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Split the parent's layers, recover, and leave weights, architecture and model.onnx in `folder` -> details."""
    model, architecture = load_model(inputs.parent)
    take_heads_apart(model)
    before = counted(model, architecture, "before")
    ranks, energy = choose_ranks(model, architecture, settings)
    log.info("%d layers keep %.1f %% of their energy", len(ranks), energy * 100)
    architecture = low_rank(model, architecture, ranks)
    curves = recover(model, settings.recovery, inputs)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    return {
        "curves": curves,
        "ranks": ranks,
        "energy": energy,
        **before,
        **counted(model, architecture, "after"),
    }


@compute_lock()
def low_rank(model: nn.Module, architecture: Architecture, ranks: Ranks) -> Architecture:
    """Split, in place -> the new architecture."""
    take_heads_apart(model)
    split(model, ranks)
    return architecture.model_copy(update={"ranks": {**architecture.ranks, **ranks}})


@compute_lock()
def choose_ranks(model: nn.Module, architecture: Architecture, settings: Factorize) -> tuple[Ranks, float]:
    """(layer -> rank, share of energy kept): the most energy with which the amount is gone.

    Raises ConfigError where even rank `round_to` everywhere leaves too much.
    """
    ((what, share),) = settings.remove.goal.items()
    assert isinstance(share, float)
    take_heads_apart(model)
    layers = factorizable(model, head_path(model))
    places = dict.fromkeys(layers, 1)
    if what == "macs":
        macs = macs_by_layer(model, architecture)
        places = {path: macs[path] // layer.weight.numel() for path, layer in layers.items()}
    energies = {path: _energies(layer.weight) for path, layer in layers.items()}
    whole = COUNTS[what](model, architecture)

    def ranks_at(energy: float) -> tuple[Ranks, int]:
        ranks, saved = {}, 0
        for path, layer in layers.items():
            needed = int((energies[path] < energy * energies[path][-1]).sum()) + 1
            rank = -(-needed // settings.round_to) * settings.round_to
            outs, ins = layer.weight.shape[0], layer.weight[0].numel()
            gain = outs * ins - rank * (outs + ins)
            if gain > 0:
                ranks[path], saved = rank, saved + gain * places[path]
        return ranks, saved

    low, high = 0.0, 1.0
    if ranks_at(low)[1] < share * whole:
        raise ConfigError(
            f"candidates: method factorize cannot remove {share:.0%} of the {what} of this {architecture.backbone}: "
            f"with ranks of {settings.round_to} everywhere {ranks_at(low)[1] / whole:.0%} go; remove less"
        )
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if ranks_at(middle)[1] >= share * whole else (low, middle)
    return ranks_at(low)[0], low


def _energies(weight: torch.Tensor) -> torch.Tensor:
    """Sum of the largest squared singular values, as many as the position says, (min(O, I),)."""
    singular: torch.Tensor = torch.linalg.svdvals(weight.detach().flatten(1).double())
    return singular.square().cumsum(0)
