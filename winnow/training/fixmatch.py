"""FixMatch with adaptive thresholds: a strong view learns what the network predicts with confidence for a weak view.

Sohn et al.: FixMatch (NeurIPS 2020, arXiv 2001.07685); thresholds of Wang et al.: FreeMatch (ICLR 2023, arXiv
2205.07246, equations 5 to 8); distribution alignment of Berthelot et al.: ReMixMatch (ICLR 2020, arXiv 1911.09785).

For a batch of unlabelled images, with q the probabilities of their weak views and running means of momentum m:

    confidence t <- m t + (1 - m) mean(max q)             threshold of all classes, 1 / C at first
    share p(c)   <- m p(c) + (1 - m) mean(q(c))           mean prediction, 1 / C at first
    threshold of class c: t p(c) / max(p)
    aligned q: q(c) prior(c) / p(c), normalised; prior: the classes of the labelled images

and the loss is the cross-entropy of the strong views with the aligned prediction of those weak views that pass the
threshold of their class, mean over all unlabelled images, beside that of the weak labelled views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from winnow.config import FixMatch
from winnow.data.augmentation import augment
from winnow.training.loop import Loss


class AdaptiveThresholds(nn.Module):
    """A network with the running means of FreeMatch beside it, so that checkpoints hold both."""

    confidence: torch.Tensor
    mean_probability_C: torch.Tensor
    prior_C: torch.Tensor

    def __init__(self, network: nn.Module, prior_C: torch.Tensor) -> None:
        """`prior_C`: share of each class among the labelled images."""
        super().__init__()
        classes = len(prior_C)
        self.network = network
        self.register_buffer("confidence", torch.tensor(1 / classes))
        self.register_buffer("mean_probability_C", torch.full((classes,), 1 / classes))
        self.register_buffer("prior_C", prior_C.float())

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the network's logits (B, C)."""
        logits_BC: torch.Tensor = self.network(x_BCHW)
        return logits_BC

    def update(self, probabilities_BC: torch.Tensor, momentum: float) -> None:
        """Move the running means towards the probabilities of this batch."""
        self.confidence.lerp_(probabilities_BC.amax(1).mean(), 1 - momentum)
        self.mean_probability_C.lerp_(probabilities_BC.mean(0), 1 - momentum)

    def pseudo_labels(self, probabilities_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (class int64 (B,) after alignment, whether the prediction passes its threshold, bool (B,))."""
        aligned_BC = probabilities_BC * self.prior_C / self.mean_probability_C.clamp(min=1e-6)
        aligned_BC = aligned_BC / aligned_BC.sum(1, keepdim=True).clamp(min=1e-12)
        confidence_B, classes_B = aligned_BC.max(1)
        threshold_C = self.confidence * self.mean_probability_C / self.mean_probability_C.max()
        return classes_B, confidence_B >= threshold_C[classes_B]


def fixmatch_loss(settings: FixMatch, side: int, labelled: int) -> Loss:
    """Return the loss of (AdaptiveThresholds, images, labels); the last `labelled` images of a batch have labels.

    `side`: of the views, in pixels.
    """

    def loss(model: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, AdaptiveThresholds)
        unlabelled = len(images_BCHW) - labelled
        weak_BCHW = augment(images_BCHW, settings.augmentation, side)
        strong_UCHW = augment(images_BCHW[:unlabelled], settings.strong_augmentation, side)
        # One pass, so that batch statistics are those of all views, as in the papers' code.
        logits = model(torch.cat([weak_BCHW, strong_UCHW]).contiguous(memory_format=torch.channels_last)).float()
        weak_UC, labelled_LC, strong_UC = logits.split([unlabelled, labelled, unlabelled])
        with torch.no_grad():
            probabilities_UC = weak_UC.softmax(1)
            model.update(probabilities_UC, settings.momentum)
            classes_U, passed_U = model.pseudo_labels(probabilities_UC)
        unlabelled_loss = (F.cross_entropy(strong_UC, classes_U, reduction="none") * passed_U).mean()
        return F.cross_entropy(labelled_LC, labels_B[unlabelled:]) + settings.unlabelled_weight * unlabelled_loss

    return loss
