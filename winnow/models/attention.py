"""Self-attention with removable heads, for torchvision's vision transformers.

`nn.MultiheadAttention` keeps queries, keys and values in one parameter and requires heads times head size to equal its
input width, so no head can be removed. Here each is a linear layer of its own, and the number of heads follows from the
number of outputs: whole heads are removed, their size stays. The outputs are the same (Dosovitskiy et al. 2021,
arXiv 2010.11929; Vaswani et al. 2017, arXiv 1706.03762).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer


class HeadwiseAttention(nn.Module):
    """Self-attention over tokens, (B, T, D) -> (B, T, D), with the call signature of nn.MultiheadAttention."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.head_size = attention.head_dim
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        with torch.no_grad():
            parts = zip(
                (self.query, self.key, self.value),
                attention.in_proj_weight.chunk(3),
                attention.in_proj_bias.chunk(3),
                strict=True,
            )
            for layer, weight, bias in parts:
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            self.out.load_state_dict(attention.out_proj.state_dict())

    @property
    def heads(self) -> int:
        """Return the number of remaining heads."""
        return int(self.query.out_features) // int(self.head_size)

    def forward(
        self, query_BTD: torch.Tensor, key_BTD: torch.Tensor, value_BTD: torch.Tensor, need_weights: bool = False
    ) -> tuple[torch.Tensor, None]:
        """Return the output (B, T, D) and None in place of the attention weights."""
        inputs = ((self.query, query_BTD), (self.key, key_BTD), (self.value, value_BTD))
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for layer, x in inputs)
        values_BHTS = F.scaled_dot_product_attention(q, k, v)
        return self.out(values_BHTS.transpose(1, 2).flatten(-2)), None


def split_heads(model: nn.Module) -> None:
    """Replace each attention of a vision transformer by one with removable heads, in place; skip other networks."""
    if not isinstance(model, VisionTransformer):
        return
    for block in model.encoder.layers:
        if isinstance(block.self_attention, nn.MultiheadAttention):
            block.self_attention = HeadwiseAttention(block.self_attention)


def attention_heads(model: nn.Module) -> dict[nn.Linear, int]:
    """Return the number of heads of each linear layer of queries, keys and values."""
    modules = [module for module in model.modules() if isinstance(module, HeadwiseAttention)]
    return {layer: module.heads for module in modules for layer in (module.query, module.key, module.value)}
