"""Quantization-aware training: the network trains while its weights and activations are rounded as int8 would.

    with simulated_int8(model):
        ... train ...                       # gradients pass straight through the rounding (Bengio et al. 2013)
    # the weights are float again, and lie where rounding hurts least

Jacob et al. 2018 (arXiv 1712.05877). What is simulated is what `post_training` does to the exported file: weights
signed, symmetric, one scale an output channel, 127 steps each way or, where sums may overflow, 63.5 (not of depthwise
convolutions, which add up few products); inputs of convolutions and linear layers 8 bits, one range a tensor, a running
mean of each batch's smallest and largest value. Batch normalisation stays apart here and is folded there; one scale a
channel makes that the same. The exporter loses Q/DQ pairs, so the float network is exported and quantized as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

MOMENTUM = 0.05
"""Weight of a new batch in the running range."""
RANGE = "int8_input_range"
STEPS, SAFE_STEPS = 127.0, 63.5
"""Of a weight, from 0 to its channel's largest; NNCF's 7 bits, of which no sum of two products overflows 16."""


class RoundedWeight(nn.Module):
    """A weight as int8 holds it: symmetric, so many steps up to the largest of each output channel."""

    def __init__(self, steps: float = STEPS) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Same shape, on the grid."""
        scales = weight.detach().float().flatten(1).abs().amax(1).clamp(min=1e-12) / self.steps
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        most = math.ceil(self.steps)
        return torch.fake_quantize_per_channel_affine(weight.float(), scales, zeros, 0, -most, most).to(weight.dtype)


def rounded_activation(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """As 8 bits hold it between `low` and `high`, both drawn to include 0, which stays exact."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, seen = inputs[0], getattr(layer, RANGE)
    if layer.training:
        with torch.no_grad():
            low, high = x.detach().float().aminmax()
            now = torch.stack((low, high))
            seen.copy_(now if bool(seen.isnan().any()) else seen + MOMENTUM * (now - seen))
    return (rounded_activation(x, seen[0], seen[1]), *inputs[1:])


@contextmanager
def simulated_int8(
    model: nn.Module, only: Iterable[nn.Module] | None = None, overflow_safe: bool = False
) -> Iterator[nn.Module]:
    """The model with rounding in every convolution and linear layer; as it was afterwards, but for what it learned.

    The running ranges are buffers of the layers, so that a checkpoint holds them. `only`: in these layers alone;
    `overflow_safe`: weights in 7 bits.
    """
    layers = [module for module in only or model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = []
    for layer in layers:
        layer.register_buffer(RANGE, torch.full((2,), float("nan")))
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        steps = SAFE_STEPS if overflow_safe and not depthwise else STEPS
        parametrize.register_parametrization(layer, "weight", RoundedWeight(steps))
        hooks.append(layer.register_forward_pre_hook(_round_input))
    try:
        yield model
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            original = layer.parametrizations["weight"].original.detach().clone()  # type: ignore[union-attr,index]
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.weight = nn.Parameter(original)
            delattr(layer, RANGE)
