"""The input of a network with known weights: its own size, mean and standard deviation, inside the network.

winnow normalises every image with one mean and deviation (winnow/data/augmentation.py). A network with known weights
expects others, often at a larger size. `InputAdapter` converts one into the other in front of the network, so that
training, pruning, export and the exported file treat both in the same way: the file still takes uint8 pixels of
`data.image_size`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import nn

from winnow.data.augmentation import MEAN, STD

Channels = tuple[float, float, float]
MAX_UPSCALING = 5
"""The largest factor by which images are enlarged: 32 pixels become 160, not 224, which costs twice as much."""
SIZE_MULTIPLE = 32
"""Sizes below a network's own are multiples of this, since most networks halve the resolution five times."""


class InputSpec(BaseModel):
    """The images that a network expects: side in pixels; mean and deviation of pixels in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    mean: Channels
    std: Channels


def input_size(native: int, image_size: int, patch: int | None = None) -> int:
    """Return the side in pixels at which a network takes images of `image_size`, given its own size.

    Images are enlarged to the network's size, at most `MAX_UPSCALING` times. `patch`: the side of a vision
    transformer's patches, of which the result is a multiple; of no other network are images reduced.
    """
    if image_size >= native:
        return image_size if patch is None else image_size // patch * patch
    multiple = patch or SIZE_MULTIPLE
    enlarged = min(native, MAX_UPSCALING * image_size // multiple * multiple)
    return max(image_size, enlarged) if patch is None else max(patch, enlarged)


class InputAdapter(nn.Module):
    """A network behind the conversion of its input: images (B, 3, S, S), normalised by winnow -> what it returns."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        """Wrap `network`, which expects images as `spec` says."""
        super().__init__()
        self.network, self.size = network, spec.size
        own_mean, own_std = torch.tensor(MEAN), torch.tensor(STD)
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("scale", (own_std / std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((own_mean - mean) / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the output of the network."""
        x_BCHW = x_BCHW * self.scale + self.shift
        if x_BCHW.shape[-1] != self.size:
            x_BCHW = F.interpolate(x_BCHW, (self.size, self.size), mode="bilinear", align_corners=False)
        output: torch.Tensor = self.network(x_BCHW)
        return output


def without_adapter(model: nn.Module) -> nn.Module:
    """Return the network behind an adapter, or the model itself."""
    return model.network if isinstance(model, InputAdapter) else model
