"""Check what a caller passes to the library: a mistake is one message, not a traceback from inside a framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from winnow.data.dataset import ImageSet
from winnow.errors import ConfigError, DataError
from winnow.models.network import Network, OnnxNetwork


def check_network(network: object, argument: str) -> Network:
    """Return the network. Raises ConfigError for anything else, such as an ONNX file."""
    if isinstance(network, OnnxNetwork):
        raise ConfigError(f"{argument}: an ONNX file cannot be trained; pass the network that it was made from")
    if not isinstance(network, Network):
        raise ConfigError(f"{argument}: expected a winnow.Network, not {type(network).__name__}")
    return network


def check_any_network(network: object, argument: str) -> Network | OnnxNetwork:
    """Return the network, in PyTorch or as an ONNX file. Raises ConfigError for anything else."""
    if not isinstance(network, Network | OnnxNetwork):
        raise ConfigError(
            f"{argument}: expected a network that a function of winnow returned, not {type(network).__name__}"
        )
    return network


def check_images(network: Network | OnnxNetwork, images: ImageSet, argument: str) -> None:
    """Raise DataError where a network takes images of another size."""
    if network.architecture.image_size != images.image_size:
        raise DataError(
            f"{argument}: the network takes images of {network.architecture.image_size} pixels, these have "
            f"{images.image_size}; pass images of its size, or pretrain a network on these"
        )


def check_pixels(network: Network | OnnxNetwork, pixels: ArrayLike) -> NDArray[np.uint8]:
    """Return pixels uint8 (N, S, S, 3), with S the image size of the network. Raises DataError for any others."""
    size = network.architecture.image_size
    pixels_NHWC = np.asarray(pixels)
    if pixels_NHWC.dtype != np.uint8 or pixels_NHWC.ndim != 4 or pixels_NHWC.shape[1:] != (size, size, 3):
        raise DataError(
            f"this network takes pixels uint8 of shape (images, {size}, {size}, 3), not {pixels_NHWC.dtype} of shape "
            f"{pixels_NHWC.shape}; resize the images, and pass values from 0 to 255, not normalised"
        )
    return pixels_NHWC


def check_classes(network: Network | OnnxNetwork, images: ImageSet, argument: str) -> None:
    """Raise DataError where a network has another number of classes than the images."""
    if network.architecture.num_classes != len(images.classes):
        raise DataError(
            f"{argument}: the network has {network.architecture.num_classes} classes, the images have "
            f"{len(images.classes)}; pass the images that it was fine-tuned on, or call winnow.finetune with these"
        )


def check_folder(path: str | Path, argument: str) -> Path:
    """Return the path of a folder to write to. Raises ConfigError where there is a file."""
    for folder in (Path(path), *Path(path).parents):
        if folder.is_dir():
            break
        if folder.exists():
            raise ConfigError(f"{argument}: {folder} is a file; name a folder")
    return Path(path)
