from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from tests.winnow.models.weight_caches import lay_out_torchvision
from winnow.errors import ArtifactError, ConfigError
from winnow.models import torchvision_weights
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.input_adapter import without_adapter
from winnow.models.weights_lookup import find_weights


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


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inception_networks_take_images_as_they_convert_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    monkeypatch.setattr(torchvision_weights, "download_torchvision", lambda *_: file)
    monkeypatch.setattr(torchvision_weights, "check_digest", lambda *_: "")
    weights = find_weights(f"torchvision:{name}", "", tmp_path)
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)


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
