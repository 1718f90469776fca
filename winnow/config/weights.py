"""Names of known weights, as params.yaml writes them.

- `none`: random weights
- `package:efficientnet-lite0`: ImageNet weights that come as a Python package
- `torchvision:NAME` or `torchvision:NAME@VERSION`: a classifier of torchvision, such as `resnet50@IMAGENET1K_V1`
- `timm:NAME`: weights of timm on the Hugging Face hub, such as `timm:convnext_tiny.fb_in22k_ft_in1k`
- `data/weights/FILE`: a file of the user, `.safetensors`, `.pth` or `.pt`
- `models:/NAME@ALIAS` or `models:/NAME/VERSION`: a model of MLflow's registry; its tensors are fetched before a run

winnow/models/weights_lookup.py finds them.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from winnow.config.backbones import BACKBONES, TIMM, WINNOW_BACKBONES, check_timm_name

NO_WEIGHTS = "none"
WEIGHTS_FOLDER = "data/weights"
"""The folder of the user's files. It is a dependency of the stages that read them, so a changed file is noticed."""
FILE_SUFFIXES = (".safetensors", ".pth", ".pt")
PACKAGES = {"efficientnet-lite0": f"{TIMM}tf_efficientnet_lite0"}
"""Weights that come as a Python package -> their backbone."""
REGISTERED = re.compile(r"models:/([\w. -]+)(?:@([\w-]+)|/(\d+))")
"""MLflow's address of a version: name, then alias or number."""
FORMS = (
    f"none, package:NAME, torchvision:NAME, timm:NAME, models:/NAME@ALIAS, or a file {WEIGHTS_FOLDER}/NAME.safetensors"
)


def is_file(weights: str) -> bool:
    """Return whether the weights are a file of the user."""
    return weights.endswith(FILE_SUFFIXES)


def weights_file(weights: str) -> str | None:
    """Return the path of the file in the project that holds the weights, None for other names.

    Weights of MLflow's registry are there once they are fetched (tasks/registry/registered_weights.py).
    """
    if is_file(weights):
        return weights
    registered = REGISTERED.fullmatch(weights)
    if registered is None:
        return None
    name, alias, version = registered.groups()
    return f"{WEIGHTS_FOLDER}/mlflow/{name}@{alias or version}.safetensors"


def backbone_of(weights: str) -> str | None:
    """Return the backbone that known weights belong to; None for a file, a registered model and for none."""
    source, _, name = weights.partition(":")
    if weights == NO_WEIGHTS or weights_file(weights):
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
    if REGISTERED.fullmatch(weights):
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
