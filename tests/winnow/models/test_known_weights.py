"""Known weights are found, checked and loaded. The hub's cache is a folder that a test lays out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn

from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import Architecture, build_model, load_model, save_model
from winnow.models.classifier_head import backbone_state, head_path, remove_head
from winnow.models.input_adapter import without_adapter
from winnow.models.known_weights import KnownWeights, find_weights

LITE = "package:efficientnet-lite0"
RESNET, VIT = "timm:resnet18.a1_in1k", "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
PALACE, DAISY = 698, 985
"""ImageNet's classes of scikit-learn's two sample photographs."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with empty caches, beside the caches that winnow sets for its own processes."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_weights_come_from_the_caches_in_the_home_folder(
    home: Path, hub: Path, torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """winnow gives its processes caches of their own, so the user's are looked up where the libraries keep them."""
    add_to_hub(home / ".cache/huggingface/hub", "timm/resnet18.a1_in1k", timm.create_model("resnet18"))
    assert find_weights(RESNET, "", tmp_path).file.is_relative_to(home)
    checkpoints = home / ".cache/torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    lay_out_torchvision(checkpoints, torchvision.models.resnet18(weights=None), monkeypatch)
    assert find_weights("torchvision:resnet18", "", tmp_path).file.parent == checkpoints


def add_to_hub(hub: Path, repository: str, network: nn.Module) -> Path:
    """Lay out the network's weights as the hub's cache does; return the blob."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    for name in ("blobs", "refs", f"snapshots/{revision}"):
        (folder / name).mkdir(parents=True)
    save_file(network.state_dict(), folder / "new")
    blob = folder / "blobs" / hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    (folder / "new").rename(blob)
    (folder / "refs/main").write_text(revision)
    (folder / f"snapshots/{revision}/model.safetensors").symlink_to(blob)
    return blob


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    (tmp_path / "torch/checkpoints").mkdir(parents=True)
    return tmp_path / "torch/checkpoints"


def features(model: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = remove_head(model.eval())(images_BCHW).flatten(1)
    return output


def package_tensors(weights: KnownWeights) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = torch.load(weights.file, weights_only=True)
    return tensors


@pytest.mark.parametrize(("photograph", "label"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_the_converted_package_recognises_photographs(photograph: str, label: int, tmp_path: Path) -> None:
    """The class is right at the package's own normalisation: names, order and arithmetic of the tensors agree."""
    weights = find_weights(LITE, "", tmp_path)
    image = Image.fromarray(load_sample_image(photograph))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in package_tensors(weights).items() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(own, values, strict=True)), strict=False)
    pixels_BCHW = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (weights.mean, weights.std))
    with torch.no_grad():
        logits_C = network.eval()((pixels_BCHW - mean) / std)[0]
    assert int(logits_C.argmax()) == label


def test_the_package_fills_a_network_for_other_classes(tmp_path: Path) -> None:
    weights = find_weights(LITE, "", tmp_path)
    architecture = weights.architecture(num_classes=3, image_size=32)
    assert architecture.backbone == "timm:tf_efficientnet_lite0"
    assert architecture.network_size == 160
    assert weights.licence == "Apache-2.0"
    model = weights.load(architecture)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert torch.equal(next(model.parameters()), next(iter(package_tensors(weights).values())))


def test_a_network_with_known_weights_is_saved_and_loaded(tmp_path: Path) -> None:
    weights = find_weights(LITE, "", tmp_path)
    architecture = weights.architecture(num_classes=3, image_size=16, size=32)
    model = weights.load(architecture)
    save_model(tmp_path, model, architecture)
    loaded, loaded_architecture = load_model(tmp_path)
    assert loaded_architecture == architecture
    images_BCHW = torch.randn(2, 3, 16, 16)
    assert torch.equal(features(loaded, images_BCHW), features(model, images_BCHW))


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_weights_come_from_the_cache_of_the_hub(name: str, hub: Path, tmp_path: Path) -> None:
    network = timm.create_model(name.removeprefix("timm:"), pretrained=False)
    add_to_hub(hub, name.replace("timm:", "timm/"), network)
    weights = find_weights(name, "", tmp_path)
    assert weights.licence == "apache-2.0"
    model = weights.load(weights.architecture(num_classes=3, image_size=224))
    images_BCHW = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(features(without_adapter(model), images_BCHW), features(network, images_BCHW))


def test_a_vision_transformer_takes_smaller_images(hub: Path, tmp_path: Path) -> None:
    network = timm.create_model(VIT.removeprefix("timm:"), pretrained=False)
    add_to_hub(hub, VIT.replace("timm:", "timm/"), network)
    weights = find_weights(VIT, "", tmp_path)
    architecture = weights.architecture(num_classes=3, image_size=16)
    assert architecture.network_size == 80
    assert weights.load(architecture)(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_a_damaged_file_of_the_hub_is_refused(hub: Path, tmp_path: Path) -> None:
    blob = add_to_hub(hub, "timm/resnet18.a1_in1k", timm.create_model("resnet18", pretrained=False))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is damaged: its sha256 begins with"):
        find_weights(RESNET, "", tmp_path)


def test_without_network_the_error_says_where_to_put_the_file(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"hf download timm/resnet18.a1_in1k model.safetensors"):
        find_weights(RESNET, "", tmp_path)


def test_an_unknown_tag_is_refused_with_close_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no such weights; similar names: resnet18\.a1_in1k"):
        find_weights("timm:resnet18.nonsense", "", tmp_path)


def lay_out_torchvision(torch_cache: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the network's weights where torch keeps resnet18's, under the digest that they have."""
    torch.save(network.state_dict(), torch_cache / "new.pth")
    digest = hashlib.sha256((torch_cache / "new.pth").read_bytes()).hexdigest()[:8]
    file = torch_cache / f"resnet18-{digest}.pth"
    (torch_cache / "new.pth").rename(file)
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry, "_value_", type(entry.value)(f"https://x/{file.name}", entry.transforms, entry.meta))
    return file


def test_weights_come_from_the_cache_of_torch(
    torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torchvision.models.resnet18(weights=None)
    lay_out_torchvision(torch_cache, network, monkeypatch)
    weights = find_weights("torchvision:resnet18", "", tmp_path)
    assert weights.backbone == "resnet18"
    small = weights.architecture(num_classes=3, image_size=32)
    assert small.network_size == 160
    assert weights.architecture(num_classes=3, image_size=224).input is None
    model = weights.load(small)
    expected, inner = backbone_state(network, "fc"), without_adapter(model)
    assert all(torch.equal(value, expected[name]) for name, value in backbone_state(inner, head_path(inner)).items())


def test_a_damaged_file_of_torchvision_is_refused(
    torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lay_out_torchvision(torch_cache, torchvision.models.resnet18(weights=None), monkeypatch)
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ArtifactError, match=r"is damaged"):
        find_weights("torchvision:resnet18", "", tmp_path)


def test_an_unknown_version_of_torchvision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights 'V9'; valid: torchvision:resnet18@IMAGENET1K_V1"):
        find_weights("torchvision:resnet18@V9", "", tmp_path)


def test_a_file_without_network_names_the_place(
    torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(ArtifactError, match=r"download it elsewhere to .*resnet18-f37072fd\.pth"):
        find_weights("torchvision:resnet18", "", tmp_path / "weights")


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


def test_a_file_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "mine.safetensors")
    weights = find_weights("mine.safetensors", "mobilenet_v2", tmp_path)
    with pytest.raises(ArtifactError, match=r"does not hold a mobilenet_v2"):
        weights.load(weights.architecture(num_classes=3, image_size=32))


SWAG = "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"
RESEARCH_GROUP = "https://github.com/google-research/vision_transformer/blob/main/LICENSE"


@pytest.mark.parametrize(
    "licence", ["cc-by-nc-4.0", "CC BY-NC-SA", "research only", "Non-commercial", "CC BY Non Commercial", SWAG]
)
def test_a_licence_without_commercial_use_is_refused(licence: str, tmp_path: Path) -> None:
    weights = known(licence, tmp_path)
    with pytest.raises(ConfigError, match=r"excludes commercial use.*pretrain\.non_commercial: true"):
        weights.check_licence("pretrain.non_commercial")


@pytest.mark.parametrize(
    "licence", ["apache-2.0", "Apache-2.0", "mit", "BSD-3-Clause", "dinov3-license", RESEARCH_GROUP]
)
def test_other_licences_are_accepted(licence: str, tmp_path: Path) -> None:
    known(licence, tmp_path).check_licence("pretrain.non_commercial")


def known(licence: str, folder: Path) -> KnownWeights:
    spec = (0.5, 0.5, 0.5)
    return KnownWeights("timm:x", "timm:resnet18", folder / "f", "", licence, 224, spec, spec, "bicubic", print)
