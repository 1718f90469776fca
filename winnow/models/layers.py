"""List the layers that hold nearly all weights and multiply-adds: convolutions and linear layers."""

from __future__ import annotations

from torch import nn


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers by dotted name, in the network's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
