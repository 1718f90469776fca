"""Networks of timm (https://github.com/huggingface/pytorch-image-models), which is imported only when one is built."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from winnow.errors import ConfigError, MissingExtra


def import_timm() -> Any:
    """Return the module. Raises MissingExtra where it is not installed."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtra("timm", "weights") from error
    return timm


def build_timm_network(name: str, num_classes: int, size: int, **options: Any) -> nn.Module:
    """Build a network with random weights: images (B, 3, size, size) -> logits (B, num_classes).

    `options` go to timm.create_model. Raises ConfigError where timm has no such network, or none for images of `size`
    pixels; MissingExtra without timm.
    """
    timm = import_timm()
    if not timm.is_model(name):
        closest = difflib.get_close_matches(name, timm.list_models(), n=4)
        suffix = f"; close: {', '.join(closest)}" if closest else ""
        raise ConfigError(f"timm {timm.__version__} has no network {name!r}{suffix}")
    if name.startswith(("vit", "deit")):
        options["img_size"] = size
    try:
        network: nn.Module = timm.create_model(name, num_classes=num_classes, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"timm's {name} cannot be built for images of {size} pixels ({error})") from error
    return network
