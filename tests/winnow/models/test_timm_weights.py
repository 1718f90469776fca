from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from tests.winnow.models.test_package_weights import features
from tests.winnow.models.weight_caches import add_to_hub
from winnow.errors import ArtifactError, ConfigError
from winnow.models.input_adapter import without_adapter
from winnow.models.weights_lookup import find_weights

RESNET, VIT = "timm:resnet18.a1_in1k", "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"


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
