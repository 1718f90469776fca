"""SGD with a weight decay and a learning rate for each group of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from winnow.config import Optimiser

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MOST_PARAMETERS = 0.9


def create_sgd(model: nn.Module, settings: Optimiser) -> torch.optim.SGD:
    """Return SGD for all parameters that are trained; `lr_scale` of a group is the factor of its learning rate."""
    return torch.optim.SGD(
        _parameter_groups(model, settings),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )


def _parameter_groups(model: nn.Module, settings: Optimiser) -> list[dict[str, Any]]:
    """Return the optimiser's groups: no weight decay for biases and normalisation; a rate for each block.

    `lr_scale` of a block is layer_decay to the number of blocks after it (as in BEiT, Bao et al. 2021, arXiv
    2106.08254).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    blocks = layer_blocks(model) if settings.layer_decay < 1 else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((blocks.get(name, 0), parameter.ndim > 1), []).append(parameter)
    last = max((block for block, _ in groups), default=0)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if is_matrix else 0.0,
            "lr_scale": settings.layer_decay ** (last - block),
        }
        for (block, is_matrix), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


def layer_blocks(model: nn.Module) -> dict[str, int]:
    """Return the number of the block that each parameter belongs to, from 0 at the input; the head is the last.

    A block is an entry of a sequence of modules (layer1.0, features.3, blocks.2, encoder_layer_0), or else a module of
    the network. The class token and the positions of a vision transformer are one block. A module with nearly all
    parameters, such as the network behind an input adapter or a transformer's encoder, is no block.
    """
    names = [name for name, _ in model.named_parameters()]
    order: dict[str, int] = {}
    result = {}
    for name in names:
        path, module = "", model
        for part in name.split("."):
            path, module = f"{path}{part}.", getattr(module, part)
            holds_blocks = isinstance(module, CONTAINERS) or _share(path, names) > MOST_PARAMETERS
            if part.isdigit() or not holds_blocks:
                break
        block = "" if isinstance(module, nn.Parameter) else path
        result[name] = order.setdefault(block, len(order))
    return result


def _share(path: str, names: list[str]) -> float:
    """Return the share of the parameters that are below the path."""
    return sum(name.startswith(path) for name in names) / len(names)
