from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from winnow.models.attention import HeadwiseAttention, attention_heads, split_heads
from winnow.models.backbones import Architecture, build_model


def test_equals_pytorchs_own() -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(48, 6, batch_first=True)
    nn.init.normal_(whole.in_proj_bias)
    x_BTD = torch.randn(3, 7, 48)
    with torch.no_grad():
        mine, weights = HeadwiseAttention(whole)(x_BTD, x_BTD, x_BTD)
        torch.testing.assert_close(mine, whole(x_BTD, x_BTD, x_BTD, need_weights=False)[0], rtol=1e-5, atol=1e-6)
    assert weights is None


@pytest.mark.thorough
def test_a_vision_transformer_answers_as_before() -> None:
    model = build_model(Architecture(backbone="vit_b_32", num_classes=3, image_size=32)).eval()
    apart = copy.deepcopy(model)
    split_heads(apart)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(apart(x), model(x), rtol=1e-4, atol=1e-5)
    assert set(attention_heads(apart).values()) == {12}
    assert len(attention_heads(apart)) == 3 * 12
    split_heads(apart)  # once more changes nothing
    assert len(attention_heads(apart)) == 3 * 12


@pytest.mark.parametrize("backbone", ["resnet8", "mobilenet_v3_small"])
def test_others_are_left_alone(backbone: str) -> None:
    model = build_model(Architecture(backbone=backbone, num_classes=3, image_size=32))
    before = [type(module) for module in model.modules()]
    split_heads(model)
    assert [type(module) for module in model.modules()] == before
    assert attention_heads(model) == {}
