from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from winnow.compression.network_size import macs_by_layer
from winnow.models.backbones import Architecture, build_model, load_model, save_model
from winnow.models.low_rank_layers import factor_matrix, factorizable_layers, factorize_layers, low_rank_pair


def test_factors_are_the_best_approximation_of_that_rank() -> None:
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    singular_values = torch.linalg.svdvals(matrix)
    for rank in (1, 5, 12):
        u, v = factor_matrix(matrix, rank)
        assert (u.shape, v.shape) == ((12, rank), (rank, 30))
        # Eckart and Young: the squared error is the sum of the remaining squared singular values.
        error = float((matrix - u @ v).square().sum())
        assert error == pytest.approx(float(singular_values[rank:].square().sum()), abs=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_full_rank_is_equal(stride: int, bias: bool) -> None:
    layer = nn.Conv2d(6, 10, 3, stride=stride, padding=1, bias=bias)
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(low_rank_pair(layer, 10)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_linear_layer_of_full_rank_is_equal() -> None:
    layer = nn.Linear(9, 4)
    x = torch.randn(2, 5, 9)
    torch.testing.assert_close(low_rank_pair(layer, 4)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_higher_rank_has_a_smaller_error() -> None:
    layer, x = nn.Conv2d(16, 16, 3, padding=1), torch.randn(4, 16, 8, 8)
    with torch.no_grad():
        gaps = [float((low_rank_pair(layer, rank)(x) - layer(x)).square().mean()) for rank in (2, 6, 10, 14)]
    assert gaps == sorted(gaps, reverse=True)


def test_head_and_grouped_convolutions_are_not_factorized() -> None:
    model = build_model(Architecture(backbone="mobilenet_v3_small", num_classes=3, image_size=32))
    layers = factorizable_layers(model, "classifier.3")
    assert "classifier.0" in layers
    assert "classifier.3" not in layers
    assert all(layer.groups == 1 for layer in layers.values() if isinstance(layer, nn.Conv2d))


def test_every_listed_layer_equals_its_pair_of_full_rank() -> None:
    """Strided convolutions of this network pad as TensorFlow does, inside their forward pass."""
    model = build_model(Architecture(backbone="timm:tf_efficientnet_lite0", num_classes=3, image_size=32)).eval()
    layers = factorizable_layers(model, "classifier")
    assert "blocks.1.0.conv_pw" in layers
    assert "conv_stem" not in layers
    compared = []

    def compare(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        pair = low_rank_pair(layer, min(layer.weight.flatten(1).shape))
        torch.testing.assert_close(pair(inputs[0]), output, rtol=1e-3, atol=1e-4)
        compared.append(layer)

    for layer in layers.values():
        layer.register_forward_hook(compare)
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert len(compared) == len(layers)


def test_attention_of_swin_is_counted_but_not_factorized() -> None:
    architecture = Architecture(backbone="swin_t", num_classes=3, image_size=64)
    model = build_model(architecture)
    layers = factorizable_layers(model, "head")
    assert "features.1.0.mlp.0" in layers
    assert not any(".attn." in path for path in layers)
    factorize_layers(model, {"features.1.0.mlp.0": 8})
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    # 16 x 16 positions in windows of 7: padded to 21 x 21.
    assert macs_by_layer(model, architecture)["features.1.0.attn.qkv"] == 96 * 288 * 21 * 21


def test_rebuilt_from_json_to_the_bit(tiny_dense: Path, tmp_path: Path) -> None:
    model, architecture = load_model(tiny_dense)
    original = copy.deepcopy(model)
    ranks = {"blocks.1.conv1": 16, "blocks.2.conv2": 24}
    factorize_layers(model, ranks)
    save_model(tmp_path, model, architecture.model_copy(update={"ranks": ranks}))
    loaded, _ = load_model(tmp_path)
    x = torch.rand(4, 3, 16, 16)
    assert torch.equal(loaded(x), model.eval()(x))
    assert loaded.blocks[1].conv1[0].weight.shape == (16, 48, 3, 3)
    assert not torch.equal(loaded(x), original(x))
