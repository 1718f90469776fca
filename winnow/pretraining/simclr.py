"""SimCLR: find the other random crop of the same image among all views of a batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations (ICML 2020,
arXiv 2002.05709). Two augmented views of each image pass the backbone and a projector; the loss is NT-Xent, a
cross-entropy over cosine similarities divided by a temperature. The projector is dropped afterwards. It needs long
training: in a few minutes RotNet helped more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from winnow.config import SimCLR
from winnow.data.augmentation import augment
from winnow.models.classifier_head import Projector, feature_dim, set_head
from winnow.pretraining.inputs import PretrainingInputs
from winnow.random_streams import stream_seed
from winnow.training.loop import Loss


def simclr(settings: SimCLR, model: nn.Module, inputs: PretrainingInputs) -> Loss:
    """Put the projector on `model`, in place, and return the loss that trains both on views of `inputs.side` pixels."""
    width = feature_dim(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.seed, "pretraining head"))
        hidden = nn.Linear(width, settings.projector_width)
        projector = Projector(hidden, nn.ReLU(), nn.Linear(settings.projector_width, settings.projection_dim))
    set_head(model, projector)

    def loss(model: nn.Module, images_BCHW: torch.Tensor, _labels_B: torch.Tensor) -> torch.Tensor:
        # Both views in one forward pass; batch statistics then mix them, as in the reference code.
        views_BCHW = torch.cat([augment(images_BCHW, settings.augmentation, inputs.side) for _ in range(2)])
        projections = model(views_BCHW.contiguous(memory_format=torch.channels_last)).float()
        first, second = projections.chunk(2)
        return nt_xent(first, second, settings.temperature)

    return loss


def nt_xent(first_BD: torch.Tensor, second_BD: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return NT-Xent (equation 1), float32, mean over the 2B views. Row i of both inputs is the same image."""
    if first_BD.shape != second_BD.shape:
        raise ValueError(f"both views need the same shape, got {tuple(first_BD.shape)} and {tuple(second_BD.shape)}")
    count = len(first_BD)
    # Under autocast the product would run in bf16, too coarse for similarities near 1.
    with torch.autocast(first_BD.device.type, enabled=False):
        views = F.normalize(torch.cat([first_BD, second_BD]).float(), dim=1)
        similarity = views @ views.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * count, device=first_BD.device).roll(count)
    return F.cross_entropy(similarity, partner)
