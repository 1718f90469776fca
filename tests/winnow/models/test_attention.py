from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from winnow.models.attention import HeadwiseAttention, heads_of, take_heads_apart
from winnow.models.backbones import Architecture, build


def test_equals_pytorchs_own() -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(48, 6, batch_first=True)
    nn.init.normal_(whole.in_proj_bias)
    x_BTD = torch.randn(3, 7, 48)
    with torch.no_grad():
        mine, weights = HeadwiseAttention(whole)(x_BTD, x_BTD, x_BTD)
        torch.testing.assert_close(mine, whole(x_BTD, x_BTD, x_BTD, need_weights=False)[0], rtol=1e-5, atol=1e-6)
    assert weights is None


def test_a_vision_transformer_answers_as_before() -> None:
    model = build(Architecture(backbone="vit_b_32", num_classes=3, image_size=32)).eval()
    apart = copy.deepcopy(model)
    take_heads_apart(apart)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(apart(x), model(x), rtol=1e-4, atol=1e-5)
    assert set(heads_of(apart).values()) == {12}
    assert len(heads_of(apart)) == 3 * 12
    take_heads_apart(apart)  # once more changes nothing
    assert len(heads_of(apart)) == 3 * 12


@pytest.mark.parametrize("backbone", ["resnet8", "mobilenet_v3_small"])
def test_others_are_left_alone(backbone: str) -> None:
    model = build(Architecture(backbone=backbone, num_classes=3, image_size=32))
    before = [type(module) for module in model.modules()]
    take_heads_apart(model)
    assert [type(module) for module in model.modules()] == before
    assert heads_of(model) == {}
