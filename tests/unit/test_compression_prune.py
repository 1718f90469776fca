from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from winnow.compression.inputs import Inputs
from winnow.compression.prune import prune, remove_channels
from winnow.config import Prune
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build, load_model, save_model

RECOVERY = {"epochs": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.05}}


def settings(**changes: Any) -> Prune:
    return Prune.model_validate({"from": "dense", "method": "prune", "channels": 0.3, "recovery": RECOVERY, **changes})


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def kept_channels(dense: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """Which of dense's channels each normalisation still has, told by their (all different) statistics."""
    kept = {}
    for path, norm in norms(pruned).items():
        before = norms(dense)[path]
        same_KC = (norm.running_mean[:, None] == before.running_mean) & (
            norm.running_var[:, None] == before.running_var
        )
        assert bool((same_KC.sum(1) == 1).all())
        kept[path] = same_KC.int().argmax(1).tolist()
    return kept


@pytest.fixture
def pair(tiny_dense: Path) -> tuple[nn.Module, nn.Module, Architecture]:
    """dense, the same with channels removed and not yet recovered, and the architecture of that."""
    dense, architecture = load_model(tiny_dense)
    pruned = copy.deepcopy(dense)
    return dense, pruned.eval(), remove_channels(pruned, architecture, settings())


def test_pruned_equals_dense_with_those_channels_zeroed(pair: tuple[nn.Module, nn.Module, Architecture]) -> None:
    dense, pruned, _ = pair
    kept = kept_channels(dense, pruned)
    zeroed = copy.deepcopy(dense)
    for path, norm in norms(zeroed).items():
        gone = torch.ones(norm.num_features, dtype=torch.bool)
        gone[kept[path]] = False
        norm.weight.data[gone] = 0
        norm.bias.data[gone] = 0
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(pruned(x), zeroed(x), rtol=1e-4, atol=1e-4)
        assert (pruned(x) - dense(x)).abs().max() > 0.01


def test_channels_that_are_added_go_together(pair: tuple[nn.Module, nn.Module, Architecture]) -> None:
    kept = kept_channels(*pair[:2])
    assert kept["stem.1"] == kept["blocks.0.bn2"]
    for block in (1, 2):
        assert kept[f"blocks.{block}.bn2"] == kept[f"blocks.{block}.downsample.1"]
    assert all(indexes == sorted(set(indexes)) for indexes in kept.values())


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
    remove_channels(model, architecture, settings(round_to=round_to, channels=channels))
    assert {m.out_channels % round_to for m in model.modules() if isinstance(m, nn.Conv2d)} == {0}
    assert count(model) < before


def test_more_channels_fewer_parameters(tiny_dense: Path) -> None:
    sizes = []
    for channels in (0.2, 0.4, 0.6):
        model, architecture = load_model(tiny_dense)
        remove_channels(model, architecture, settings(channels=channels))
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
    remove_channels(model, architecture, settings(channels=0.2))
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
    smaller = remove_channels(loaded, read, settings())
    save_model(tmp_path, loaded.eval(), smaller)
    assert count(loaded) < count(pruned)
    assert torch.equal(load_model(tmp_path)[0](x), loaded(x))


def test_same_network_same_cut(pair: tuple[nn.Module, nn.Module, Architecture], tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    torch.manual_seed(99)
    assert remove_channels(model, architecture, settings()) == pair[2]


def test_nothing_to_remove_is_an_error(tiny_dense: Path) -> None:
    model, architecture = load_model(tiny_dense)
    with pytest.raises(ConfigError, match=r"channels: 0\.3 and round_to: 256 removes nothing .* lower round_to"):
        remove_channels(model, architecture, settings(round_to=256))


@pytest.mark.parametrize(("channels", "cap", "round_to"), [(0.6, 0.4, 8), (0.9, 0.75, 8), (0.99, 0.7, 1)])
def test_no_layer_loses_more_than_the_cap(tiny_dense: Path, channels: float, cap: float, round_to: int) -> None:
    model, architecture = load_model(tiny_dense)
    before = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    remove_channels(model, architecture, settings(channels=channels, max_channels=cap, round_to=round_to))
    after = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(now >= was * (1 - cap) - 1e-9 for now, was in zip(after, before, strict=True))
    assert sum(after) < 0.75 * sum(before)
    assert {count % round_to for count in after} == {0}


@pytest.mark.parametrize(
    ("backbone", "reason"), [("vit_b_32", "attention heads"), ("swin_t", "attention heads"), ("shufflenet_v2_x0_5", "")]
)
def test_networks_that_cannot_be_pruned_are_refused(backbone: str, reason: str) -> None:
    architecture = Architecture(backbone=backbone, num_classes=3, image_size=32)
    with pytest.raises(ConfigError, match=rf"prune does not fit a {backbone} \({reason}.*resnet18"):
        remove_channels(build(architecture), architecture, settings())


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf"])
def test_other_backbones_keep_their_head_and_come_back(backbone: str, tmp_path: Path) -> None:
    architecture = Architecture(backbone=backbone, num_classes=5, image_size=32)
    model = build(architecture)
    before = count(model)
    save_model(tmp_path, model, remove_channels(model, architecture, settings()))
    assert 0.4 < count(model) / before < 0.75
    x = torch.rand(2, 3, 32, 32)
    assert model.eval()(x).shape == (2, 5)
    assert torch.equal(load_model(tmp_path)[0](x), model(x))


def test_method_leaves_a_candidate(tiny_inputs: Inputs, tmp_path: Path) -> None:
    details = prune(settings(), tiny_inputs, tmp_path)
    loaded, _ = load_model(tmp_path)
    assert details["parameters_after"] == count(loaded) < details["parameters_before"]
    assert [row["epoch"] for row in details["curves"]] == [1]
    assert {path.name for path in tmp_path.iterdir()} >= {"model.onnx", "weights.safetensors", "architecture.json"}
