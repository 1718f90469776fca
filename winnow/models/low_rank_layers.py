"""Replace a wide convolution or linear layer by two thin ones, a factorization of low rank.

    (out, in, k, k)  ->  (rank, in, k, k) with stride and padding, then (out, rank, 1, 1) with the bias

Zhang et al. 2016 (arXiv 1505.06798), Tai et al. 2016 (arXiv 1511.06067): the weight matrix, one row per output, is
truncated to its largest singular values (Eckart and Young 1936: no matrix of that rank is nearer).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention


def factorizable_layers(model: nn.Module, head: str) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that may be split: ungrouped convolutions and linear layers, except the head.

    Layers inside nn.MultiheadAttention and Swin's attention are excluded: their parameters are read, not called; also
    subclasses, such as timm's Conv2dSame, which pads as TensorFlow does.
    """
    in_attention = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention | ShiftedWindowAttention)
        for name, _ in module.named_modules()
    }
    return {
        path: module
        for path, module in model.named_modules()
        if path != head
        and path not in in_attention
        and type(module) in (nn.Conv2d, nn.Linear)
        and getattr(module, "groups", 1) == 1
    }


def factorize_layers(model: nn.Module, ranks: Mapping[str, int], keep_weights: bool = True) -> None:
    """Replace the named layers by pairs that compute the nearest approximation of that rank, in place.

    With `keep_weights` false the pairs have random weights, to be loaded later.
    """
    for path, rank in ranks.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, low_rank_pair(model.get_submodule(path), rank, keep_weights))


def low_rank_pair(layer: nn.Module, rank: int, keep_weights: bool = True) -> nn.Sequential:
    """Return the pair of layers for one layer."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    has_bias = layer.bias is not None
    first: nn.Module
    second: nn.Module
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        first = nn.Conv2d(
            layer.in_channels,
            rank,
            _pair(layer.kernel_size),
            stride=_pair(layer.stride),
            padding=_pair(layer.padding),
            dilation=_pair(layer.dilation),
            bias=False,
        )
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=has_bias)
    else:
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=has_bias)
    if keep_weights:
        u_OR, v_RI = factor_matrix(layer.weight.detach().flatten(1), rank)
        first.load_state_dict({"weight": v_RI.view_as(first.weight)})
        bias = {"bias": layer.bias.detach()} if layer.bias is not None else {}
        second.load_state_dict({"weight": u_OR.view_as(second.weight), **bias})
    return nn.Sequential(first, second)


def factor_matrix(matrix_OI: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (O, rank) and (rank, I) with the nearest product; each holds the roots of the singular values."""
    u, s, v = torch.linalg.svd(matrix_OI.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix_OI.dtype), (root[:, None] * v[:rank]).to(matrix_OI.dtype)


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    return sides[0], sides[1]
