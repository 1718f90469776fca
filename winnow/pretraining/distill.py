"""Distillation of embeddings: predict the embedding that a large network with known weights gives to an image.

Navaneet, Koohpayegani, Tejankar, Pirsiavash: SimReg, Regression as a Simple Yet Effective Tool for Self-supervised
Knowledge Distillation (BMVC 2021, arXiv 2201.05131). The loss is 1 - cosine(projection of the backbone's features,
teacher's centred embedding), mean over the batch, which is half the squared distance of the normalised vectors. The
projector is dropped afterwards. The teacher saw each image once, without augmentation (winnow/steps/embed.py), so its
embeddings cost nothing here; the backbone learns them for random crops. No label is used.
"""

from __future__ import annotations

import torch
from torch import nn

from winnow.config import DistillEmbeddings
from winnow.data.augmentation import augment
from winnow.models.classifier_head import feature_dim, set_head
from winnow.pretraining.inputs import PretrainingInputs
from winnow.random_streams import stream_seed
from winnow.training.loop import Loss
from winnow.training.losses import cosine_distance


def distill(settings: DistillEmbeddings, model: nn.Module, inputs: PretrainingInputs) -> Loss:
    """Put a linear projector on `model`, in place, and return the loss that trains both on views of `inputs.side`."""
    assert inputs.targets is not None
    targets = inputs.targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.seed, "pretraining head"))
        set_head(model, nn.Linear(feature_dim(model), targets.width))

    def loss(model: nn.Module, images_BCHW: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
        projected_BD = model(augment(images_BCHW, settings.augmentation, inputs.side)).float()
        return cosine_distance(projected_BD, targets.select(positions_B))

    return loss
