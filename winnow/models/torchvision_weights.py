"""Known weights of torchvision's classifiers, `torchvision:NAME@VERSION`.

A vision transformer's positions are interpolated to the size of the network. The digest is part of the file's name.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torchvision
from torch import nn

from winnow.errors import ConfigError
from winnow.models.backbones import Architecture
from winnow.models.foreign_weights import fill_backbone, read_tensors
from winnow.models.input_adapter import without_adapter
from winnow.models.known_weights import KnownWeights, torchvision_input
from winnow.models.weights_download import check_digest, download_torchvision


def find_torchvision_weights(name: str, cache: Path) -> KnownWeights:
    """Return torchvision's weights NAME or NAME@VERSION, from torch's cache or downloaded to `cache`.

    Raises ConfigError for an unknown version, ArtifactError where they cannot be downloaded or are damaged.
    """
    network, _, version = name.partition("@")
    versions = torchvision.models.get_model_weights(network)
    try:
        entry = versions[version or "DEFAULT"]
    except KeyError as error:
        valid = ", ".join(f"torchvision:{network}@{weights.name}" for weights in versions)
        raise ConfigError(f"torchvision:{name}: there are no weights {version!r}; valid: {valid}") from error
    file_name = entry.url.rpartition("/")[2]
    digest = file_name.rpartition("-")[2].partition(".")[0]
    file = download_torchvision(entry.url, cache / file_name, digest)
    transforms = entry.transforms()

    def fill(model: nn.Module, architecture: Architecture) -> None:
        state = read_tensors(file)
        inner = without_adapter(model)
        if isinstance(inner, torchvision.models.VisionTransformer):
            resize = torchvision.models.vision_transformer.interpolate_embeddings
            state = dict(resize(inner.image_size, inner.patch_size, OrderedDict(state)))
        fill_backbone(model, state, file, architecture)

    return KnownWeights(
        f"torchvision:{name}",
        network,
        file,
        check_digest(file, digest),
        str(entry.meta.get("license", "BSD-3-Clause code; the data set's terms may apply to the weights")),
        transforms.crop_size[0],
        *torchvision_input(network, tuple(transforms.mean), tuple(transforms.std)),
        transforms.interpolation.value,
        fill,
    )
