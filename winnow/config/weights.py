"""Names of known weights, as params.yaml writes them.

- `none`: random weights
- `package:efficientnet-lite0`: ImageNet weights that come as a Python package
- `torchvision:NAME` or `torchvision:NAME@VERSION`: a classifier of torchvision, such as `resnet50@IMAGENET1K_V1`
- `timm:NAME`: weights of timm on the Hugging Face hub, such as `timm:convnext_tiny.fb_in22k_ft_in1k`
- `data/weights/FILE`: a file of the user, `.safetensors`, `.pth` or `.pt`

winnow/models/known_weights.py finds them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from winnow.config.backbones import BACKBONES, TIMM, WINNOW_BACKBONES, check_timm_name

NO_WEIGHTS = "none"
WEIGHTS_FOLDER = "data/weights"
"""The folder of the user's files. It is a dependency of the stages that read them, so a changed file is noticed."""
FILE_SUFFIXES = (".safetensors", ".pth", ".pt")
PACKAGES = {"efficientnet-lite0": f"{TIMM}tf_efficientnet_lite0"}
"""Weights that come as a Python package -> their backbone."""
FORMS = f"none, package:NAME, torchvision:NAME, timm:NAME, or a file {WEIGHTS_FOLDER}/NAME.safetensors"


def is_file(weights: str) -> bool:
    """Return whether the weights are a file of the user."""
    return weights.endswith(FILE_SUFFIXES)


def backbone_of(weights: str) -> str | None:
    """Return the backbone that known weights belong to; None for a file and for none, which name no backbone."""
    source, _, name = weights.partition(":")
    if weights == NO_WEIGHTS or is_file(weights):
        return None
    if source == "package":
        return PACKAGES.get(name)
    return name.partition("@")[0] if source == "torchvision" else TIMM + name.partition(".")[0]


def _check_weights(weights: str) -> str:
    if weights == NO_WEIGHTS:
        return weights
    if is_file(weights):
        folder, _, name = weights.rpartition("/")
        if folder != WEIGHTS_FOLDER or not name:
            raise ValueError(f"{weights!r}: put the file into {WEIGHTS_FOLDER}/ and write {WEIGHTS_FOLDER}/{name}")
        return weights
    source, _, name = weights.partition(":")
    if source == "package" and name in PACKAGES:
        return weights
    if source == "package":
        raise ValueError(f"there is no package of weights {name!r}; valid: {', '.join(PACKAGES)}")
    if source == "torchvision":
        network = name.partition("@")[0]
        if network not in BACKBONES or network in WINNOW_BACKBONES:
            raise ValueError(f"{network!r} is not a classifier of torchvision")
        return weights
    if source == "timm":
        check_timm_name(name.partition(".")[0])
        return weights
    raise ValueError(f"{weights!r} must be {FORMS}")


Weights = Annotated[str, AfterValidator(_check_weights)]
