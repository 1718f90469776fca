from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from winnow.models.attention import HeadwiseAttention, attention_heads, split_heads
from winnow.models.backbones import Architecture, build_model


def test_headwise_attention_equals_pytorch() -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(48, 6, batch_first=True)
    nn.init.normal_(reference.in_proj_bias)
    x_BTD = torch.randn(3, 7, 48)
    with torch.no_grad():
        actual, weights = HeadwiseAttention(reference)(x_BTD, x_BTD, x_BTD)
        torch.testing.assert_close(actual, reference(x_BTD, x_BTD, x_BTD, need_weights=False)[0], rtol=1e-5, atol=1e-6)
    assert weights is None


@pytest.mark.thorough
def test_split_heads_keep_the_logits_of_a_vision_transformer() -> None:
    model = build_model(Architecture(backbone="vit_b_32", num_classes=3, image_size=32)).eval()
    split_model = copy.deepcopy(model)
    split_heads(split_model)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(split_model(x), model(x), rtol=1e-4, atol=1e-5)
    assert set(attention_heads(split_model).values()) == {12}
    assert len(attention_heads(split_model)) == 3 * 12
    split_heads(split_model)  # a second split changes nothing
    assert len(attention_heads(split_model)) == 3 * 12


@pytest.mark.parametrize("backbone", ["resnet8", "mobilenet_v3_small"])
def test_networks_without_attention_are_unchanged(backbone: str) -> None:
    model = build_model(Architecture(backbone=backbone, num_classes=3, image_size=32))
    types_before = [type(module) for module in model.modules()]
    split_heads(model)
    assert [type(module) for module in model.modules()] == types_before
    assert attention_heads(model) == {}
