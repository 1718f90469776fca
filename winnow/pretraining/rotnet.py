"""RotNet: predict by which multiple of 90 degrees an image was rotated.

Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations (ICLR 2018, arXiv
1803.07728). Every image of a batch appears in all four rotations, as the paper found best; the rotation is the
pseudo-label and the loss is cross-entropy. It is cheap per image and helps after a few minutes. It learns little from
images without an upright direction (textures, microscopy): use SimCLR there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from winnow.config import RotNet
from winnow.data.augmentation import augment
from winnow.models.classifier_head import feature_dim, set_head
from winnow.pretraining.inputs import PretrainingInputs
from winnow.random_streams import stream_seed
from winnow.training.loop import Loss

ROTATIONS = 4


def rotnet(settings: RotNet, model: nn.Module, inputs: PretrainingInputs) -> Loss:
    """Put a four-way head on `model`, in place, and return the loss that trains it on views of `inputs.side` pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.seed, "pretraining head"))
        set_head(model, nn.Linear(feature_dim(model), ROTATIONS))

    def loss(model: nn.Module, images_BCHW: torch.Tensor, _labels_B: torch.Tensor) -> torch.Tensor:
        views_BCHW = augment(images_BCHW, settings.augmentation, inputs.side)
        rotated_BCHW, rotation_B = rotations(views_BCHW)
        return F.cross_entropy(model(rotated_BCHW).float(), rotation_B)

    return loss


def rotations(x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all four rotations of square images (B, C, S, S) -> (4B, C, S, S), and their pseudo-labels 0..3 (4B,)."""
    if x_BCHW.shape[2] != x_BCHW.shape[3]:
        raise ValueError(f"rotations need square images, got {tuple(x_BCHW.shape)}")
    rotated = torch.cat([torch.rot90(x_BCHW, quarter_turns, (2, 3)) for quarter_turns in range(ROTATIONS)])
    labels = torch.arange(ROTATIONS, device=x_BCHW.device).repeat_interleave(len(x_BCHW))
    return rotated.contiguous(memory_format=torch.channels_last), labels
