"""Known weights: a file, what is known of it, and the network that it belongs to.

winnow/models/weights_lookup.py finds them by name; each source fills a network in its own way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from winnow.config.backbones import WINNOW_BACKBONES
from winnow.config.weights import weights_file
from winnow.data.augmentation import MEAN, STD
from winnow.errors import ConfigError
from winnow.models.backbones import SMALL_IMAGE, Architecture, build_model
from winnow.models.input_adapter import Channels, InputSpec, input_size
from winnow.records import KnownWeightsDetails

log = logging.getLogger(__name__)

IMAGENET_SIZE = 224
INCEPTION_INPUT = (0.5, 0.5, 0.5)
"""Mean and deviation of images for torchvision's GoogLeNet and Inception v3. With known weights torchvision normalises
them by ImageNet's, and the network converts them (`transform_input`), which gives the same."""
NOT_STATED = "not stated"
NON_COMMERCIAL = re.compile(
    r"(^|[^a-z])nc([^a-z]|$)|non[- ]?commercial|research[- ](only|use|purpose)|/SWAG/", re.IGNORECASE
)
"""Licences that exclude commercial use. torchvision names that of its SWAG weights, CC-BY-NC, by an address alone."""
PATCH = re.compile(r"_patch(\d+)|^vit_[a-z]_(\d+)$")
"""The side of a vision transformer's patches, in its name in timm or in torchvision."""


@dataclass(frozen=True)
class KnownWeights:
    """A file of known weights, and what is known of it."""

    name: str
    """As params.yaml names them."""
    backbone: str
    file: Path
    sha256: str
    licence: str
    native_size: int
    """The side in pixels of the images that the network was trained on."""
    mean: Channels
    std: Channels
    interpolation: str
    """The method by which those images were resized."""
    fill: Callable[[nn.Module, Architecture], None]
    """Loads these weights into the backbone of a network of this architecture, in place."""
    small_stem: bool = False
    """True for a ResNet whose first layer is that for small images."""

    def architecture(self, num_classes: int, image_size: int, size: int | None = None) -> Architecture:
        """Return the architecture for images of `image_size` pixels.

        `size`: the side in pixels at which the network takes them; None: as winnow/models/input_adapter.py says.
        Raises ConfigError for a size that the network cannot have.
        """
        plain = Architecture(backbone=self.backbone, num_classes=num_classes, image_size=image_size)
        if self.backbone in WINNOW_BACKBONES or self.small_stem:
            if size not in (None, image_size):
                raise ConfigError(
                    f"input_size: {size} has no effect on {self.backbone} with these weights, which takes images of "
                    "data.image_size; set input_size: auto"
                )
            return plain
        patch = PATCH.search(self.backbone)
        size = size or input_size(self.native_size, image_size, int(patch[1] or patch[2]) if patch else None)
        if (size, self.mean, self.std) == (image_size, MEAN, STD) and image_size > SMALL_IMAGE:
            return plain
        return plain.model_copy(update={"input": InputSpec(size=size, mean=self.mean, std=self.std)})

    def load(self, architecture: Architecture) -> nn.Module:
        """Return the network in eval mode, with these weights and a random head.

        Raises ArtifactError where the file does not hold this network.
        """
        model = build_model(architecture)
        self.fill(model, architecture)
        return model.eval()

    def check_licence(self, key: str) -> None:
        """Raise ConfigError for a licence that excludes production; `key`: the setting that allows it.

        Weights of a library that states none give a warning.
        """
        if self.licence == NOT_STATED and not weights_file(self.name):
            log.warning("%s: no licence is stated for these weights; clarify it before commercial use", self.name)
        if NON_COMMERCIAL.search(self.licence):
            raise ConfigError(
                f"{self.name}: the licence of these weights, {self.licence}, excludes commercial use; choose others, "
                f"or set {key}: true"
            )


def torchvision_input(backbone: str, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
    """Return mean and deviation of the images that a network of torchvision takes; given: those of its transforms."""
    return (INCEPTION_INPUT, INCEPTION_INPUT) if backbone in ("googlenet", "inception_v3") else (mean, std)


def weights_details(weights: KnownWeights, architecture: Architecture) -> KnownWeightsDetails:
    """Return what the record says of known weights in a network of this architecture."""
    return KnownWeightsDetails(
        name=weights.name,
        backbone=weights.backbone,
        sha256=weights.sha256,
        licence=weights.licence,
        native_size=weights.native_size,
        input_size=architecture.network_size,
        mean=weights.mean,
        std=weights.std,
        interpolation=weights.interpolation,
    )
