"""The layers that hold nearly all weights and multiply-adds of a network: convolutions and linear layers."""

from __future__ import annotations

from torch import nn


def layers_of(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Dotted name -> layer, in the network's own order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
