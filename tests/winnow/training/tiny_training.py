"""A training of a few seconds: two classes that differ in their brightness."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from winnow.config import Optimiser
from winnow.data.batches import Batches
from winnow.models.backbones import Architecture, build_model
from winnow.training.loop import TrainingPlan

OPTIMISER = Optimiser(learning_rate=0.05, warmup=0.25)


def cross_entropy(model: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    noise = torch.rand(images_BCHW.shape) * 0.1  # per-step random numbers, as in augmentation
    return F.cross_entropy(model(images_BCHW.float() / 255 + noise).float(), labels_B)


def tiny_problem(seed: int = 0) -> tuple[nn.Module, Batches, TrainingPlan]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    images = rng.integers(0, 120, (40, 8, 8, 3), dtype=np.uint8)
    images[labels == 1] += 100
    batches = Batches(images, labels, np.arange(40), 8, seed)
    model = build_model(Architecture(backbone="resnet8", num_classes=2, image_size=8, width=0.2))
    return model, batches, TrainingPlan(4, 5, OPTIMISER, seed)
