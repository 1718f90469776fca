"""Check that a network can take images of a size, before anything is trained."""

from __future__ import annotations

import torch

from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model


def check_image_size(architecture: Architecture, key: str) -> None:
    """Raise ConfigError, which names the setting `key`, for a backbone that cannot take images of this size."""
    side = architecture.image_size
    try:
        with torch.inference_mode():
            build_model(architecture).eval()(torch.zeros(2, 3, side, side))
    except (AssertionError, ConfigError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{key}: {architecture.backbone} cannot be used with images of {side} pixels: {reason}; choose another "
            "network, or another data.image_size"
        ) from error
