"""Attention whose heads can be removed: torchvision's vision transformers, with their one matrix taken apart.

`nn.MultiheadAttention` keeps queries, keys and values in one parameter and takes the number of heads times their size
for the width of its input, so no head can go. Here each is a linear layer of its own, and the number of heads follows
from how many outputs are left: whole heads go, their size stays. Same numbers (Dosovitskiy et al. 2021,
arXiv 2010.11929; Vaswani et al. 2017, arXiv 1706.03762).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer


class HeadwiseAttention(nn.Module):
    """Self-attention over tokens, (B, T, D) -> (B, T, D); called as nn.MultiheadAttention is."""

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        width = whole.embed_dim
        self.head_size = whole.head_dim
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        with torch.no_grad():
            parts = zip(
                (self.query, self.key, self.value),
                whole.in_proj_weight.chunk(3),
                whole.in_proj_bias.chunk(3),
                strict=True,
            )
            for layer, weight, bias in parts:
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            self.out.load_state_dict(whole.out_proj.state_dict())

    @property
    def heads(self) -> int:
        """Those that are left."""
        return int(self.query.out_features) // int(self.head_size)

    def forward(
        self, query_BTD: torch.Tensor, key_BTD: torch.Tensor, value_BTD: torch.Tensor, need_weights: bool = False
    ) -> tuple[torch.Tensor, None]:
        """(what each token gathers, None in place of the attention's weights)."""
        pairs = ((self.query, query_BTD), (self.key, key_BTD), (self.value, value_BTD))
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for layer, x in pairs)
        gathered_BHTS = F.scaled_dot_product_attention(q, k, v)
        return self.out(gathered_BHTS.transpose(1, 2).flatten(-2)), None


def take_heads_apart(model: nn.Module) -> None:
    """Replace every attention of a vision transformer by one whose heads can go, in place. Others are left alone."""
    if not isinstance(model, VisionTransformer):
        return
    for block in model.encoder.layers:
        if isinstance(block.self_attention, nn.MultiheadAttention):
            block.self_attention = HeadwiseAttention(block.self_attention)


def heads_of(model: nn.Module) -> dict[nn.Linear, int]:
    """The linear layers of queries, keys and values with their number of heads."""
    found = [module for module in model.modules() if isinstance(module, HeadwiseAttention)]
    return {layer: each.heads for each in found for layer in (each.query, each.key, each.value)}
