from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from winnow.compression.channel_importance import Criterion
from winnow.compression.channel_pruning import PruningStep, copy_with_gradients, min_channels_by_layer, remove_channels
from winnow.compression.network_size import count_macs
from winnow.config.backbones import is_prunable
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model, load_model, save_model, with_split_heads
from winnow.models.layers import weight_layers


def cut(model: nn.Module, share: float = 0.3, round_to: int = 8, most: float = 0.75) -> PruningStep:
    return PruningStep(share, Criterion("magnitude", 0), round_to, min_channels_by_layer(model, most))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def kept_channels(dense: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """Which of dense's channels each normalisation still has, told by their (all different) statistics."""
    remaining = {}
    for path, norm in norms(pruned).items():
        before = norms(dense)[path]
        same_KC = (norm.running_mean[:, None] == before.running_mean) & (
            norm.running_var[:, None] == before.running_var
        )
        assert bool((same_KC.sum(1) == 1).all())
        remaining[path] = same_KC.int().argmax(1).tolist()
    return remaining


@pytest.fixture
def pair(tiny_dense: Path) -> tuple[nn.Module, nn.Module, Architecture]:
    """dense, the same with channels removed and not yet recovered, and the architecture of that."""
    dense, architecture = load_model(tiny_dense)
    pruned = copy.deepcopy(dense)
    return dense, pruned.eval(), remove_channels(pruned, architecture, cut(dense))


def test_pruned_equals_dense_with_those_channels_zeroed(pair: tuple[nn.Module, nn.Module, Architecture]) -> None:
    dense, pruned, _ = pair
    remaining = kept_channels(dense, pruned)
    zeroed = copy.deepcopy(dense)
    for path, norm in norms(zeroed).items():
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[remaining[path]] = False
        norm.weight.data[gone] = 0
        norm.bias.data[gone] = 0
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(pruned(x), zeroed(x), rtol=1e-4, atol=1e-4)
        assert (pruned(x) - dense(x)).abs().max() > 0.01


def test_channels_that_are_added_go_together(pair: tuple[nn.Module, nn.Module, Architecture]) -> None:
    remaining = kept_channels(*pair[:2])
    assert remaining["stem.1"] == remaining["blocks.0.bn2"]
    for block in (1, 2):
        assert remaining[f"blocks.{block}.bn2"] == remaining[f"blocks.{block}.downsample.1"]
    assert all(indexes == sorted(set(indexes)) for indexes in remaining.values())


def test_a_third_of_the_channels_is_half_of_the_parameters(pair: tuple[nn.Module, nn.Module, Architecture]) -> None:
    dense, pruned, _ = pair
    # Convolutions shrink on both sides: (1 - 0.3)^2.
    assert count(pruned) / count(dense) == pytest.approx(0.49, abs=0.1)
    convolutions = [module for module in pruned.modules() if isinstance(module, nn.Conv2d)]
    assert {module.out_channels % 8 for module in convolutions} == {0}
    assert pruned.fc.out_features == 3


@pytest.mark.parametrize(("round_to", "channels"), [(1, 0.5), (4, 0.5), (16, 0.5), (16, 0.7)])
def test_counts_stay_multiples(tiny_dense: Path, round_to: int, channels: float) -> None:
    model, architecture = load_model(tiny_dense)
    before = count(model)
    remove_channels(model, architecture, cut(model, channels, round_to))
    assert {m.out_channels % round_to for m in model.modules() if isinstance(m, nn.Conv2d)} == {0}
    assert count(model) < before


def test_more_channels_fewer_parameters(tiny_dense: Path) -> None:
    sizes = []
    for channels in (0.2, 0.4, 0.6):
        model, architecture = load_model(tiny_dense)
        remove_channels(model, architecture, cut(model, channels))
        sizes.append(count(model))
    assert sizes == sorted(set(sizes), reverse=True)


def test_small_channels_go_first(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    dense = copy.deepcopy(model)
    weak = [3, 17, 40, 41, 60, 61, 80, 95]
    for parameter in (dense.blocks[1].conv1.weight, dense.blocks[1].bn1.weight, dense.blocks[1].bn1.bias):
        parameter.data[weak] *= 1e-3
    dense.blocks[1].conv2.weight.data[:, weak] *= 1e-3
    model.load_state_dict(dense.state_dict())
    remove_channels(model, architecture, cut(model, 0.2))
    assert not set(weak) & set(kept_channels(dense, model)["blocks.1.bn1"])


def test_rebuilt_from_json_to_the_bit(pair: tuple[nn.Module, nn.Module, Architecture], tmp_path: Path) -> None:
    _, pruned, architecture = pair
    save_model(tmp_path, pruned, architecture)
    assert json.loads((tmp_path / "architecture.json").read_text())["pruning"]
    loaded, read = load_model(tmp_path)
    x = torch.rand(4, 3, 16, 16)
    assert read == architecture
    assert torch.equal(loaded(x), pruned(x))
    # Pruned once more, it is still rebuilt: the histories are laid end to end.
    smaller = remove_channels(loaded, read, cut(loaded))
    save_model(tmp_path, loaded.eval(), smaller)
    assert count(loaded) < count(pruned)
    assert torch.equal(load_model(tmp_path)[0](x), loaded(x))


def test_same_network_same_cut(pair: tuple[nn.Module, nn.Module, Architecture], tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    torch.manual_seed(99)
    assert remove_channels(model, architecture, cut(model)) == pair[2]


def test_nothing_to_remove_is_an_error(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    with pytest.raises(ConfigError, match=r"30% of the channels with round_to: 256 leaves this .* lower round_to"):
        remove_channels(model, architecture, cut(model, round_to=256))


@pytest.mark.parametrize(
    ("share", "most", "round_to"), [(0.6, 0.4, 8), (0.9, 0.75, 8), (0.99, 0.7, 1), (0.95, 0.75, 4)]
)
def test_no_layer_loses_more_than_it_may(tiny_dense: Path, share: float, most: float, round_to: int) -> None:
    model, architecture = load_model(tiny_dense)
    before = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    remove_channels(model, architecture, cut(model, share, round_to, most))
    after = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(now >= was * (1 - most) - 1e-9 for now, was in zip(after, before, strict=True))
    assert sum(after) < 0.75 * sum(before)
    assert {count % round_to for count in after} == {0}


def test_a_layer_of_which_all_would_go_is_cut_and_not_left_whole(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    # Beside one that is enormous all others of the layer are as nothing.
    model.blocks[1].conv1.weight.data[5] *= 1e4
    before = model.blocks[1].conv1.out_channels
    remove_channels(model, architecture, cut(model, 0.5))
    assert model.blocks[1].conv1.out_channels == before // 4


@pytest.mark.parametrize("backbone", ["swin_t", "maxvit_t", "shufflenet_v2_x0_5"])
def test_networks_that_cannot_be_pruned_are_refused(backbone: str) -> None:
    assert not is_prunable(backbone)
    architecture = Architecture(backbone=backbone, num_classes=3, image_size=224 if backbone == "maxvit_t" else 32)
    model = build_model(architecture)
    with pytest.raises(ConfigError, match=rf"prune does not fit a {backbone} .*resnet18"):
        remove_channels(model, architecture, cut(model))


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "mnasnet0_5", "densenet121"])
def test_other_backbones_keep_their_head_and_come_back(backbone: str, tmp_path: Path) -> None:
    architecture = Architecture(backbone=backbone, num_classes=5, image_size=32)
    model = build_model(architecture)
    before, macs = count(model), count_macs(model, architecture)
    after = remove_channels(model, architecture, cut(model))
    save_model(tmp_path, model, after)
    assert count(model) / before < 0.75
    assert count_macs(model, after) / macs < 0.75
    x = torch.rand(2, 3, 32, 32)
    assert model.eval()(x).shape == (2, 5)
    assert torch.equal(load_model(tmp_path)[0](x), model(x))


@pytest.mark.thorough
def test_heads_of_a_vision_transformer_go_whole(tmp_path: Path) -> None:
    architecture = Architecture(backbone="vit_b_32", num_classes=5, image_size=64)
    model = build_model(architecture)
    after = remove_channels(model, architecture, cut(model, 0.9))
    blocks = [block.self_attention for block in model.encoder.layers]
    # A quarter of 12 heads stays, each of its 64 channels; the width of the tokens shrinks apart from that.
    assert {block.heads for block in blocks} == {3}
    assert {block.query.out_features for block in blocks} == {3 * 64}
    assert model.hidden_dim == blocks[0].query.in_features == 768 // 4
    save_model(tmp_path, model, after)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(load_model(tmp_path)[0](x), model.eval()(x))


@pytest.mark.thorough
def test_heads_that_are_apart_come_back_apart() -> None:
    architecture = Architecture(backbone="vit_b_32", num_classes=5, image_size=64)
    whole, x = build_model(architecture), torch.rand(2, 3, 64, 64)
    before = whole.eval()(x)
    model, apart = with_split_heads(whole, architecture)
    again = build_model(apart, seed=1)
    again.load_state_dict(model.state_dict())
    assert "encoder.layers.encoder_layer_0.self_attention.query" in weight_layers(again)
    torch.testing.assert_close(again.eval()(x), before)
    plain = Architecture(backbone="resnet8", num_classes=5, image_size=16)
    assert with_split_heads(build_model(plain), plain)[1] == plain


def test_gradients_are_copied(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    twin = copy_with_gradients(model)
    assert torch.equal(twin.fc.weight.grad, model.fc.weight.grad)
    assert twin.fc.weight.grad is not model.fc.weight.grad
    assert twin.stem[0].weight.grad is None
