from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from winnow.models.backbones import load_model, save_model
from winnow.models.classifier_head import remove_head
from winnow.models.known_weights import KnownWeights
from winnow.models.weights_lookup import find_weights

LITE = "package:efficientnet-lite0"
PALACE, DAISY = 698, 985
"""ImageNet's classes of scikit-learn's two sample photographs."""


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
