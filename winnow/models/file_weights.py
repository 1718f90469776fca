"""Known weights of a user's file, or of a model of MLflow's registry that was fetched to a file.

The file does not name its backbone, nor the images that it was trained on: the backbone is that of the settings, and
the images are taken to be those of torchvision's weights, or of timm's default weights for a backbone of timm.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from winnow.config.backbones import TIMM
from winnow.data.augmentation import MEAN, STD
from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture
from winnow.models.foreign_weights import RESNET_STEM, fill_backbone, read_tensors, strip_prefixes
from winnow.models.input_adapter import InputSpec
from winnow.models.known_weights import IMAGENET_SIZE, NOT_STATED, KnownWeights, torchvision_input
from winnow.models.timm_networks import import_timm
from winnow.models.timm_weights import fill_timm_network
from winnow.records import sha256_of

SMALL_STEM = 3
"""The side of the first convolution of a ResNet for small images."""


def find_file_weights(name: str, file: Path, backbone: str) -> KnownWeights:
    """Return the weights of a user's file, or of a model of MLflow's registry, which belong to `backbone`.

    Raises ArtifactError where the file is missing or holds no tensors.
    """
    if not file.is_file() and str(file) != name:
        raise ArtifactError(f"{name} has not been fetched to {file}; run `winnow fetch`")
    if not file.is_file():
        raise ArtifactError(f"{name} is missing; put the file there, or choose other weights")
    mean, std = torchvision_input(backbone, MEAN, STD)
    native = InputSpec(size=IMAGENET_SIZE, mean=mean, std=std)
    interpolation = "bilinear"
    if is_timm := backbone.startswith(TIMM):
        known = import_timm().models.get_pretrained_cfg(backbone.removeprefix(TIMM), allow_unregistered=True)
        if known is not None:
            native = InputSpec(size=known.input_size[1], mean=tuple(known.mean), std=tuple(known.std))
            interpolation = known.interpolation
    tensors = read_tensors(file)
    stem = strip_prefixes(tensors, dict.fromkeys([RESNET_STEM], torch.empty(0))).get(RESNET_STEM)

    def fill(model: nn.Module, architecture: Architecture) -> None:
        if is_timm:
            fill_timm_network(model, architecture, backbone.removeprefix(TIMM), tensors, file)
        else:
            fill_backbone(model, tensors, file, architecture)

    return KnownWeights(
        name,
        backbone,
        file,
        sha256_of(file),
        NOT_STATED,
        native.size,
        native.mean,
        native.std,
        interpolation,
        fill,
        small_stem=backbone.startswith("resnet") and stem is not None and stem.shape[-1] == SMALL_STEM,
    )
