"""Quantization-aware training: train while weights and activations are rounded as int8 inference rounds them.

    with simulated_int8(model):
        ... train ...                       # straight-through gradients (Bengio et al. 2013)
    # the weights are float again, near values that int8 represents well

Jacob et al. 2018 (arXiv 1712.05877). It simulates what `post_training_quantization` does to the exported file. Weights
are signed and symmetric, with one scale per output channel and 127 steps each way, or 63.5 where sums may overflow (not
for depthwise convolutions, which add up few products). Inputs of convolutions and linear layers have 8 bits and one
range per tensor, a running mean of each batch's smallest and largest value. Batch normalisation is not folded here but
in the exported file; one scale per channel makes both equal. The exporter drops Q/DQ pairs, so the float network is
exported and quantized like any other.
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
RANGE_BUFFER = "int8_input_range"
"""Name of the buffer that holds a layer's input range."""
WEIGHT_STEPS, SAFE_WEIGHT_STEPS = 127.0, 63.5
"""Steps from 0 to the largest weight of a channel: 8 bits; NNCF's 7 bits, where two products fit into 16 bits."""


class FakeQuantizedWeight(nn.Module):
    """Parametrization that rounds a weight to int8: symmetric, `steps` up to each output channel's largest value."""

    def __init__(self, steps: float = WEIGHT_STEPS) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight, of the same shape."""
        scales = weight.detach().float().flatten(1).abs().amax(1).clamp(min=1e-12) / self.steps
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        largest = math.ceil(self.steps)
        return torch.fake_quantize_per_channel_affine(weight.float(), scales, zeros, 0, -largest, largest).to(
            weight.dtype
        )


def fake_quantize_activation(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return `x` rounded to 8 bits between `low` and `high`; both are extended to include 0, which stays exact."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)


def _round_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round a layer's input to 8 bits, and update its running range while the layer trains."""
    x, range_2 = inputs[0], getattr(layer, RANGE_BUFFER)
    if layer.training:
        with torch.no_grad():
            low, high = x.detach().float().aminmax()
            batch_2 = torch.stack((low, high))
            range_2.copy_(batch_2 if bool(range_2.isnan().any()) else range_2 + MOMENTUM * (batch_2 - range_2))
    return (fake_quantize_activation(x, range_2[0], range_2[1]), *inputs[1:])


@contextmanager
def simulated_int8(
    model: nn.Module, only: Iterable[nn.Module] | None = None, overflow_safe: bool = False
) -> Iterator[nn.Module]:
    """Round inputs and weights of every convolution and linear layer within; yields the model.

    Afterwards the model has its trained float weights. The running ranges are buffers of the layers, so a checkpoint
    holds them. `only`: round these layers alone; `overflow_safe`: weights in 7 bits.
    """
    layers = [module for module in only or model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = []
    for layer in layers:
        layer.register_buffer(RANGE_BUFFER, torch.full((2,), float("nan")))
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        steps = SAFE_WEIGHT_STEPS if overflow_safe and not depthwise else WEIGHT_STEPS
        parametrize.register_parametrization(layer, "weight", FakeQuantizedWeight(steps))
        hooks.append(layer.register_forward_pre_hook(_round_input))
    try:
        yield model
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            original = layer.parametrizations["weight"].original.detach().clone()  # type: ignore[union-attr,index]
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.weight = nn.Parameter(original)
            delattr(layer, RANGE_BUFFER)
