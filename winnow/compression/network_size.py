"""The size of a network: its parameters, and the multiply-adds of one forward pass.

Multiply-adds are counted by running one image through the network with hooks, so every layer counts with the output
size that it really has. Only convolutions and linear layers count; they take nearly all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from winnow.models.backbones import Architecture
from winnow.models.layers import weight_layers


def example_input(architecture: Architecture) -> torch.Tensor:
    """Return a black image (1, 3, S, S) of the architecture's input size."""
    return torch.zeros(1, 3, architecture.image_size, architecture.image_size)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, architecture: Architecture) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image."""
    return sum(macs_by_layer(model, architecture).values())


def macs_by_layer(model: nn.Module, architecture: Architecture) -> dict[str, int]:
    """Return convolution or linear layer -> multiply-adds for one image: its weights times its output positions."""
    layers: dict[nn.Module, str] = {layer: path for path, layer in weight_layers(model).items()}
    macs = dict.fromkeys(layers.values(), 0)

    def count(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        positions = math.prod(output.shape[2:]) if isinstance(module, nn.Conv2d) else output.numel() // output.shape[-1]
        macs[layers[module]] += module.weight.numel() * positions

    def count_windows(module: Any, inputs: Any, _output: Any) -> None:
        """Count Swin's two layers whose weights are read without a call, at each position of its padded windows."""
        sides = zip(inputs[0].shape[1:3], module.window_size, strict=True)
        positions = math.prod(math.ceil(side / window) * window for side, window in sides)
        for layer in (module.qkv, module.proj):
            macs[layers[layer]] += layer.weight.numel() * positions

    hooks = [layer.register_forward_hook(count) for layer in layers]
    windowed = [module for module in model.modules() if isinstance(module, ShiftedWindowAttention)]
    hooks += [module.register_forward_hook(count_windows) for module in windowed]
    try:
        with torch.inference_mode():
            model.eval()(example_input(architecture))
    finally:
        for hook in hooks:
            hook.remove()
    return macs


SIZE_MEASURES: dict[str, Callable[[nn.Module, Architecture], int]] = {
    "parameters": lambda model, _architecture: count_parameters(model),
    "macs": count_macs,
}
"""Quantities that `remove` can name, besides channels and a latency -> function that counts them."""


def size_metrics(model: nn.Module, architecture: Architecture, when: str) -> dict[str, int]:
    """Return {parameters_WHEN, macs_WHEN} for the record."""
    return {f"{name}_{when}": count(model, architecture) for name, count in SIZE_MEASURES.items()}
