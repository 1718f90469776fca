from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model
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


def test_a_file_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "mine.safetensors")
    weights = find_weights("mine.safetensors", "mobilenet_v2", tmp_path)
    with pytest.raises(ArtifactError, match=r"does not hold a mobilenet_v2"):
        weights.load(weights.architecture(num_classes=3, image_size=32))
