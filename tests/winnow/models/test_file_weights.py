from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.winnow.models.test_package_weights import features
from winnow.config.backbones import BACKBONES, WINNOW_BACKBONES
from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.foreign_weights import check_all_used
from winnow.models.input_adapter import without_adapter
from winnow.models.weights_lookup import find_weights


@pytest.mark.parametrize(("stem", "size"), [(3, 32), (7, 160)])
def test_the_stem_of_a_file_decides_the_size(
    stem: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResNet for small images takes them as they are; one for large images gets them enlarged."""
    network = (
        build_model(Architecture(backbone="resnet18", num_classes=5, image_size=32))
        if stem == 3
        else torchvision.models.resnet18(weights=None)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/weights").mkdir(parents=True)
    save_file(network.state_dict(), tmp_path / "data/weights/mine.safetensors")
    weights = find_weights("data/weights/mine.safetensors", "resnet18", tmp_path)
    architecture = weights.architecture(num_classes=3, image_size=32)
    assert architecture.network_size == size
    assert weights.load(architecture)(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_googlenet_sees_the_images_that_torchvision_gives_it(tmp_path: Path) -> None:
    """With known weights torchvision's network converts images that are normalised as for the others."""
    network = torchvision.models.googlenet(weights=None, transform_input=True, aux_logits=False, init_weights=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 224, 224))  # features of random weights are nearly zero without statistics
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    weights = find_weights(str(tmp_path / "mine.safetensors"), "googlenet", tmp_path)
    model = weights.load(weights.architecture(num_classes=3, image_size=224))
    images_BCHW = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(features(model, images_BCHW), features(network, images_BCHW), rtol=1e-3, atol=1e-3)


def test_a_file_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "mine.safetensors")
    weights = find_weights("mine.safetensors", "mobilenet_v2", tmp_path)
    with pytest.raises(ArtifactError, match=r"does not hold a mobilenet_v2"):
        weights.load(weights.architecture(num_classes=3, image_size=32))


TIMM_RESNET = "timm:resnet18"


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
@pytest.mark.parametrize("classes", [3, 1000])
def test_a_file_fills_a_network_of_timm(prefix: str, classes: int, tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=5)
    file = tmp_path / "mine.safetensors"
    save_file({prefix + name: value for name, value in backbone_state(network, "fc").items()}, file)
    weights = find_weights(str(file), TIMM_RESNET, tmp_path)
    model = weights.load(weights.architecture(num_classes=classes, image_size=224))
    images_BCHW = torch.randn(1, 3, 224, 224)
    assert model(images_BCHW).shape == (1, classes)
    torch.testing.assert_close(features(without_adapter(model), images_BCHW), features(network, images_BCHW))


@pytest.mark.parametrize("content", ["another network", "no tensors", "one tensor less", "other names"])
def test_a_file_that_does_not_hold_the_network_of_timm_is_refused(content: str, tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    backbone = "timm:mobilenetv3_small_050" if content == "another network" else TIMM_RESNET
    states = {
        "another network": state,
        "no tensors": {},
        "one tensor less": {name: value for name, value in state.items() if name != "layer2.0.bn1.weight"},
        "other names": {f"trunk.{name}": value for name, value in state.items()},
    }
    save_file(states[content], tmp_path / "mine.safetensors")
    weights = find_weights(str(tmp_path / "mine.safetensors"), backbone, tmp_path)
    with pytest.raises(ArtifactError):
        weights.load(weights.architecture(num_classes=3, image_size=32))


FOREIGN = set(BACKBONES) - set(WINNOW_BACKBONES)
DEEPER = [
    ("resnet18", "resnet34"),
    ("resnet50", "resnet101"),
    ("efficientnet_b0", "efficientnet_b1"),
    ("convnext_tiny", "convnext_small"),
    ("timm:resnet18", "timm:resnet34"),
    ("timm:resnet18", "timm:resnet34 without counters"),
    ("timm:resnet50", "timm:resnet101"),
    ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224 of 14 blocks"),
]


@pytest.mark.parametrize(("backbone", "deeper"), DEEPER)
def test_a_file_of_a_deeper_network_of_the_family_is_refused(backbone: str, deeper: str, tmp_path: Path) -> None:
    """Each tensor of the smaller network is in the file of the larger one, but the others are lost."""
    name, _, change = deeper.partition(" ")
    if name.startswith("timm:"):
        network = timm.create_model(name.removeprefix("timm:"), **({"depth": 14} if "blocks" in change else {}))
    else:
        network = torchvision.models.get_model(name, weights=None)
    counters = () if change == "without counters" else ("num_batches_tracked",)
    state = {
        key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked") or counters
    }
    save_file(state, tmp_path / "mine.safetensors")
    weights = find_weights(str(tmp_path / "mine.safetensors"), backbone, tmp_path)
    with pytest.raises(ArtifactError, match="holds a larger network than"):
        weights.load(weights.architecture(num_classes=3, image_size=224))
    if not change:
        same = find_weights(str(tmp_path / "mine.safetensors"), name, tmp_path)
        same.load(same.architecture(num_classes=3, image_size=224))


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", sorted(name for name in FOREIGN if not name.startswith("regnet")))
def test_each_network_of_torchvision_uses_all_of_its_tensors(backbone: str) -> None:
    with torch.device("meta"):  # on which RegNets cannot be built
        state = torchvision.models.get_model(backbone, weights=None).state_dict()
        network = build_model(Architecture(backbone=backbone, num_classes=3, image_size=224))
    head = head_path(network)
    check_all_used(state, backbone_state(network, head), head, Path(), backbone)


@pytest.mark.parametrize("damage", ["nan", "infinity", "variance"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("backbone", ["resnet18", TIMM_RESNET])
def test_weights_that_compute_nothing_are_refused(damage: str, suffix: str, backbone: str, tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    value = {"nan": float("nan"), "infinity": float("inf"), "variance": -1.0}[damage]
    state["layer2.0.bn1.running_var" if damage == "variance" else "conv1.weight"].view(-1)[0] = value
    file = tmp_path / f"mine.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    weights = find_weights(str(file), backbone, tmp_path)
    architecture = weights.architecture(num_classes=3, image_size=224)
    with pytest.raises(ArtifactError, match=r"(layer2\.0\.bn1\.running_var has a variance|conv1\.weight has values)"):
        weights.load(architecture)


@pytest.mark.parametrize("backbone", ["resnet18", TIMM_RESNET])
def test_values_that_are_not_loaded_may_be_anything(backbone: str, tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    state |= {"fc.bias": torch.full((1000,), float("nan")), "attn_mask": torch.full((4, 4), float("-inf"))}
    save_file(state, tmp_path / "mine.safetensors")
    weights = find_weights(str(tmp_path / "mine.safetensors"), backbone, tmp_path)
    weights.load(weights.architecture(num_classes=3, image_size=224))
