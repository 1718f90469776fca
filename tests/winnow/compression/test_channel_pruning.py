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


def pruning_step(model: nn.Module, share: float = 0.3, round_to: int = 8, max_channels: float = 0.75) -> PruningStep:
    return PruningStep(share, Criterion("magnitude", 0), round_to, min_channels_by_layer(model, max_channels))


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def remaining_channels(dense: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """Return the indices of dense's channels that each normalisation still has, by their (all different) statistics."""
    remaining = {}
    for path, norm in batch_norms(pruned).items():
        original = batch_norms(dense)[path]
        same_KC = (norm.running_mean[:, None] == original.running_mean) & (
            norm.running_var[:, None] == original.running_var
        )
        assert bool((same_KC.sum(1) == 1).all())
        remaining[path] = same_KC.int().argmax(1).tolist()
    return remaining


@pytest.fixture
def dense_and_pruned(tiny_dense: Path) -> tuple[nn.Module, nn.Module, Architecture]:
    """Return dense, a pruned copy without recovery, and the architecture of the copy."""
    dense, architecture = load_model(tiny_dense)
    pruned = copy.deepcopy(dense)
    return dense, pruned.eval(), remove_channels(pruned, architecture, pruning_step(dense))


def test_pruned_equals_dense_with_those_channels_zeroed(
    dense_and_pruned: tuple[nn.Module, nn.Module, Architecture],
) -> None:
    dense, pruned, _ = dense_and_pruned
    remaining = remaining_channels(dense, pruned)
    zeroed = copy.deepcopy(dense)
    for path, norm in batch_norms(zeroed).items():
        is_removed = torch.ones(norm.num_features, dtype=torch.bool)
        is_removed[remaining[path]] = False
        norm.weight.data[is_removed] = 0
        norm.bias.data[is_removed] = 0
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(pruned(x), zeroed(x), rtol=1e-4, atol=1e-4)
        assert (pruned(x) - dense(x)).abs().max() > 0.01


def test_channels_that_are_added_are_removed_together(
    dense_and_pruned: tuple[nn.Module, nn.Module, Architecture],
) -> None:
    remaining = remaining_channels(*dense_and_pruned[:2])
    assert remaining["stem.1"] == remaining["blocks.0.bn2"]
    for block in (1, 2):
        assert remaining[f"blocks.{block}.bn2"] == remaining[f"blocks.{block}.downsample.1"]
    assert all(indexes == sorted(set(indexes)) for indexes in remaining.values())


def test_a_third_of_the_channels_has_half_of_the_parameters(
    dense_and_pruned: tuple[nn.Module, nn.Module, Architecture],
) -> None:
    dense, pruned, _ = dense_and_pruned
    # Convolutions shrink on both sides: (1 - 0.3)^2.
    assert count_parameters(pruned) / count_parameters(dense) == pytest.approx(0.49, abs=0.1)
    convolutions = [module for module in pruned.modules() if isinstance(module, nn.Conv2d)]
    assert {module.out_channels % 8 for module in convolutions} == {0}
    assert pruned.fc.out_features == 3


@pytest.mark.parametrize(("round_to", "channels"), [(1, 0.5), (4, 0.5), (16, 0.5), (16, 0.7)])
def test_channel_counts_are_multiples(tiny_dense: Path, round_to: int, channels: float) -> None:
    model, architecture = load_model(tiny_dense)
    dense_parameters = count_parameters(model)
    remove_channels(model, architecture, pruning_step(model, channels, round_to))
    assert {m.out_channels % round_to for m in model.modules() if isinstance(m, nn.Conv2d)} == {0}
    assert count_parameters(model) < dense_parameters


def test_removing_more_channels_leaves_fewer_parameters(tiny_dense: Path) -> None:
    sizes = []
    for channels in (0.2, 0.4, 0.6):
        model, architecture = load_model(tiny_dense)
        remove_channels(model, architecture, pruning_step(model, channels))
        sizes.append(count_parameters(model))
    assert sizes == sorted(set(sizes), reverse=True)


def test_small_channels_are_removed_first(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    dense = copy.deepcopy(model)
    small_channels = [3, 17, 40, 41, 60, 61, 80, 95]
    for parameter in (dense.blocks[1].conv1.weight, dense.blocks[1].bn1.weight, dense.blocks[1].bn1.bias):
        parameter.data[small_channels] *= 1e-3
    dense.blocks[1].conv2.weight.data[:, small_channels] *= 1e-3
    model.load_state_dict(dense.state_dict())
    remove_channels(model, architecture, pruning_step(model, 0.2))
    assert not set(small_channels) & set(remaining_channels(dense, model)["blocks.1.bn1"])


def test_rebuilt_from_json_to_the_bit(
    dense_and_pruned: tuple[nn.Module, nn.Module, Architecture], tmp_path: Path
) -> None:
    _, pruned, architecture = dense_and_pruned
    save_model(tmp_path, pruned, architecture)
    assert json.loads((tmp_path / "architecture.json").read_text())["pruning"]
    loaded, loaded_architecture = load_model(tmp_path)
    x = torch.rand(4, 3, 16, 16)
    assert loaded_architecture == architecture
    assert torch.equal(loaded(x), pruned(x))
    # Pruned a second time, it is still rebuilt: the histories are concatenated.
    pruned_twice = remove_channels(loaded, loaded_architecture, pruning_step(loaded))
    save_model(tmp_path, loaded.eval(), pruned_twice)
    assert count_parameters(loaded) < count_parameters(pruned)
    assert torch.equal(load_model(tmp_path)[0](x), loaded(x))


def test_pruning_repeats(dense_and_pruned: tuple[nn.Module, nn.Module, Architecture], tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    torch.manual_seed(99)
    assert remove_channels(model, architecture, pruning_step(model)) == dense_and_pruned[2]


def test_nothing_to_remove_is_an_error(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    with pytest.raises(ConfigError, match=r"30% of the channels with round_to: 256 leaves this .* lower round_to"):
        remove_channels(model, architecture, pruning_step(model, round_to=256))


@pytest.mark.parametrize(
    ("share", "max_channels", "round_to"), [(0.6, 0.4, 8), (0.9, 0.75, 8), (0.99, 0.7, 1), (0.95, 0.75, 4)]
)
def test_no_layer_loses_more_than_max_channels(
    tiny_dense: Path, share: float, max_channels: float, round_to: int
) -> None:
    model, architecture = load_model(tiny_dense)
    widths_before = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    remove_channels(model, architecture, pruning_step(model, share, round_to, max_channels))
    widths_after = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(
        width >= width_before * (1 - max_channels) - 1e-9
        for width, width_before in zip(widths_after, widths_before, strict=True)
    )
    assert sum(widths_after) < 0.75 * sum(widths_before)
    assert {width_after % round_to for width_after in widths_after} == {0}


def test_a_layer_with_one_enormous_filter_is_still_pruned(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    # One enormous filter makes all others of the layer negligible.
    model.blocks[1].conv1.weight.data[5] *= 1e4
    width = model.blocks[1].conv1.out_channels
    remove_channels(model, architecture, pruning_step(model, 0.5))
    assert model.blocks[1].conv1.out_channels == width // 4


@pytest.mark.parametrize("backbone", ["swin_t", "maxvit_t", "shufflenet_v2_x0_5"])
def test_networks_that_cannot_be_pruned_are_refused(backbone: str) -> None:
    assert not is_prunable(backbone)
    architecture = Architecture(backbone=backbone, num_classes=3, image_size=224 if backbone == "maxvit_t" else 32)
    model = build_model(architecture)
    with pytest.raises(ConfigError, match=rf"prune does not fit a {backbone} .*resnet18"):
        remove_channels(model, architecture, pruning_step(model))


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "mnasnet0_5", "densenet121"])
def test_other_backbones_keep_their_head_and_are_rebuilt(backbone: str, tmp_path: Path) -> None:
    architecture = Architecture(backbone=backbone, num_classes=5, image_size=32)
    model = build_model(architecture)
    dense_parameters, dense_macs = count_parameters(model), count_macs(model, architecture)
    pruned_architecture = remove_channels(model, architecture, pruning_step(model))
    save_model(tmp_path, model, pruned_architecture)
    assert count_parameters(model) / dense_parameters < 0.75
    assert count_macs(model, pruned_architecture) / dense_macs < 0.75
    x = torch.rand(2, 3, 32, 32)
    assert model.eval()(x).shape == (2, 5)
    assert torch.equal(load_model(tmp_path)[0](x), model(x))


@pytest.mark.thorough
def test_vision_transformers_lose_whole_heads(tmp_path: Path) -> None:
    architecture = Architecture(backbone="vit_b_32", num_classes=5, image_size=64)
    model = build_model(architecture)
    pruned_architecture = remove_channels(model, architecture, pruning_step(model, 0.9))
    blocks = [block.self_attention for block in model.encoder.layers]
    # A quarter of 12 heads remains, with all 64 channels each; the token width shrinks separately.
    assert {block.heads for block in blocks} == {3}
    assert {block.query.out_features for block in blocks} == {3 * 64}
    assert model.hidden_dim == blocks[0].query.in_features == 768 // 4
    save_model(tmp_path, model, pruned_architecture)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(load_model(tmp_path)[0](x), model.eval()(x))


@pytest.mark.thorough
def test_split_heads_are_rebuilt_split() -> None:
    architecture = Architecture(backbone="vit_b_32", num_classes=5, image_size=64)
    fused, x = build_model(architecture), torch.rand(2, 3, 64, 64)
    expected = fused.eval()(x)
    model, split_architecture = with_split_heads(fused, architecture)
    rebuilt = build_model(split_architecture, seed=1)
    rebuilt.load_state_dict(model.state_dict())
    assert "encoder.layers.encoder_layer_0.self_attention.query" in weight_layers(rebuilt)
    torch.testing.assert_close(rebuilt.eval()(x), expected)
    resnet8 = Architecture(backbone="resnet8", num_classes=5, image_size=16)
    assert with_split_heads(build_model(resnet8), resnet8)[1] == resnet8


def test_gradients_are_copied(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    copied = copy_with_gradients(model)
    assert torch.equal(copied.fc.weight.grad, model.fc.weight.grad)
    assert copied.fc.weight.grad is not model.fc.weight.grad
    assert copied.stem[0].weight.grad is None
