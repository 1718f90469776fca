from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from winnow.config.backbones import BACKBONES, HEADLESS, SCALABLE_BACKBONES, WINNOW_BACKBONES
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import Architecture, build_model, load_model, save_model
from winnow.models.classifier_head import feature_dim, head_path, new_classifier


def test_resnet8_has_the_stated_size() -> None:
    model = build_model(Architecture(backbone="resnet8", num_classes=10, image_size=32))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.69e6, rel=0.01)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 0.27e6), ("resnet56", 0.85e6)])
def test_cifar_resnets_have_the_size_of_the_paper(name: str, parameters: float) -> None:
    # He et al. 2015, table 6.
    model = build_model(Architecture(backbone=name, num_classes=10, image_size=32))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.03)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.blocks(model.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 8, 8)


def test_resnet18_stem_fits_the_image() -> None:
    model_32 = build_model(Architecture(backbone="resnet18", num_classes=10, image_size=32))
    model_224 = build_model(Architecture(backbone="resnet18", num_classes=10, image_size=224))
    assert model_32.conv1.stride == (1, 1)
    assert model_32.conv1.padding == (1, 1)
    assert isinstance(model_32.maxpool, torch.nn.Identity)
    assert model_224.conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "path"),
    [("resnet8", "fc"), ("mobilenet_v3_small", "classifier.3"), ("densenet121", "classifier"), ("swin_t", "head")],
)
def test_heads_are_found_and_replaced(name: str, path: str) -> None:
    model = build_model(Architecture(backbone=name, num_classes=7, image_size=32))
    assert head_path(model) == path
    width = feature_dim(model)
    new_classifier(model, 4, seed=3)
    assert model.get_submodule(path).weight.shape == (4, width)
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


def test_initial_weights_depend_on_the_seed_only() -> None:
    architecture = Architecture(backbone="resnet8", num_classes=3, image_size=16)
    torch.manual_seed(99)
    first = build_model(architecture, seed=1).state_dict()
    torch.manual_seed(5)
    repeated, other_seed = (
        build_model(architecture, seed=1).state_dict(),
        build_model(architecture, seed=2).state_dict(),
    )
    assert all(torch.equal(first[name], repeated[name]) for name in first)
    assert not all(torch.equal(first[name], other_seed[name]) for name in first)


def test_backbone_names_equal_those_of_torchvision() -> None:
    installed = set(torchvision.models.list_models(module=torchvision.models)) - set(HEADLESS)
    assert (*WINNOW_BACKBONES, *sorted(installed)) == BACKBONES


def test_an_unknown_backbone_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'resnet19' is not a backbone.*resnet18"):
        build_model(Architecture(backbone="resnet19", num_classes=2, image_size=32))


def test_network_without_linear_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="linear head"):
        head_path(torchvision.models.squeezenet1_0(weights=None))
    with pytest.raises(ConfigError, match="is not a backbone"):
        build_model(Architecture(backbone="squeezenet1_0", num_classes=2, image_size=64))


@pytest.mark.thorough
@pytest.mark.parametrize("name", SCALABLE_BACKBONES)
def test_half_the_width_is_about_a_quarter_of_the_parameters(name: str, tmp_path: Path) -> None:
    def network(width: float) -> torch.nn.Module:
        return build_model(Architecture(backbone=name, num_classes=3, image_size=32, width=width)).eval()

    full_parameters, half_parameters = (
        sum(parameter.numel() for path, parameter in network(width).named_parameters() if "classifier" not in path)
        for width in (1.0, 0.5)
    )
    assert 0.2 < half_parameters / full_parameters < 0.4
    architecture = Architecture(backbone=name, num_classes=3, image_size=32, width=0.5)
    save_model(tmp_path, network(0.5), architecture)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model(tmp_path)[0](x), network(0.5)(x))


def test_a_saved_model_is_loaded_to_the_bit(tmp_path: Path) -> None:
    architecture = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.5)
    model = build_model(architecture, seed=4).eval()
    save_model(tmp_path, model, architecture)
    loaded, loaded_architecture = load_model(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    assert loaded_architecture == architecture
    assert torch.equal(loaded(x), model(x))


def test_damaged_weights_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    architecture = Architecture(backbone="resnet8", num_classes=3, image_size=16)
    save_model(tmp_path, build_model(architecture), architecture)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is missing or damaged.*run winnow again"):
        load_model(tmp_path)
