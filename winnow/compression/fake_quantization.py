"""Quantization-aware training: the network trains while its weights and activations are rounded as int8 would.

    with simulated_int8(model):
        ... train ...                       # gradients pass straight through the rounding (Bengio et al. 2013)
    # the weights are float again, and lie where rounding hurts least

Jacob et al. 2018 (arXiv 1712.05877). What is simulated is what `post_training` does to the exported file: weights
signed, symmetric, one scale an output channel; inputs of convolutions and linear layers 8 bits, one range a tensor, a
running mean of each batch's smallest and largest value. Batch normalisation stays apart here and is folded there; one
scale a channel makes that the same. The exporter loses Q/DQ pairs, so the float network is exported and quantized as
any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

MOMENTUM = 0.05
"""Weight of a new batch in the running range."""
RANGE = "int8_input_range"


class RoundedWeight(nn.Module):
    """A weight as int8 holds it: symmetric, 127 steps up to the largest of each output channel."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Same shape, on the grid."""
        scales = weight.detach().float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight.float(), scales, zeros, 0, -127, 127).to(weight.dtype)


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
def simulated_int8(model: nn.Module, only: Iterable[nn.Module] | None = None) -> Iterator[nn.Module]:
    """The model with rounding in every convolution and linear layer; as it was afterwards, but for what it learned.

    The running ranges are buffers of the layers, so that a checkpoint holds them. `only`: in these layers alone.
    """
    layers = [module for module in only or model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = []
    for layer in layers:
        layer.register_buffer(RANGE, torch.full((2,), float("nan")))
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
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
