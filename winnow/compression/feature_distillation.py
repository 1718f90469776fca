"""Hints: what a student learns from inside its teacher, besides the teacher's outputs.

features    the features before the head, through a linear projector that is trained along and then dropped (Romero et
            al. 2015, arXiv 1412.6550). Only their direction counts (as in Tian et al. 2020, arXiv 1910.10699), since
            norms depend on the width.
attention   the attention maps: the sum of squared channels at each resolution that both networks have, as a unit
            vector (Zagoruyko and Komodakis 2017, arXiv 1612.03928)
pretrained  as `features`, but those of the backbone that was pretrained without labels and not fine-tuned: its features
            of unlabelled images contain what fine-tuning on few labels may have lost
embeddings  as `features`, but the embeddings of the large network with known weights (winnow/steps/embed.py), which are
            computed once and without augmentation (Navaneet et al. 2021, arXiv 2201.05131)

Each returns one number per batch, 0 where student and teacher agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from winnow.errors import ConfigError
from winnow.training.feature_projector import FeatureProjector, capture_features
from winnow.training.losses import cosine_distance

HintOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(student logits (B, C), guide logits (B, C), distance, a scalar)."""


@contextmanager
def capture_feature_maps(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the last feature map of each resolution in a forward pass within: height -> (B, C, H, W)."""
    maps: dict[int, torch.Tensor] = {}

    def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] > 1:
            maps[output.shape[2]] = output

    hooks = [module.register_forward_hook(collect) for module in model.modules() if module is not model]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def attention_distance(student: dict[int, torch.Tensor], teacher: dict[int, torch.Tensor]) -> torch.Tensor:
    """Return the squared distance of the unit attention maps, mean over the batch and over shared resolutions.

    Raises ConfigError where student and teacher share no resolution.
    """
    shared = [
        height for height in student if height in teacher and student[height].shape[3] == teacher[height].shape[3]
    ]
    if not shared:
        raise ConfigError(
            "candidates: hint: attention compares feature maps of the same resolution, and student and teacher share "
            "none; use hint: features"
        )
    distances = [
        (_attention(student[height]) - _attention(teacher[height])).square().sum(1).mean() for height in shared
    ]
    return torch.stack(distances).mean()


def _attention(map_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the attention map as a vector of length 1, (B, H * W)."""
    return F.normalize(map_BCHW.float().square().sum(1).flatten(1), dim=1)


def _by_features(model: nn.Module, guide: nn.Module, views_BCHW: torch.Tensor) -> HintOutput:
    """Compare the features before the head, the student's after the projector."""
    assert isinstance(model, FeatureProjector)
    with capture_features(model.student) as student_features:
        student_BC = model(views_BCHW).float()
    with torch.no_grad(), capture_features(guide) as guide_features:
        guide_BC = guide(views_BCHW).float()
    return student_BC, guide_BC, cosine_distance(model.translate(student_features[-1]), guide_features[-1])


def _by_attention(model: nn.Module, guide: nn.Module, views_BCHW: torch.Tensor) -> HintOutput:
    """Compare the attention maps of all shared resolutions."""
    with capture_feature_maps(model) as student_maps:
        student_BC = model(views_BCHW).float()
    with torch.no_grad(), capture_feature_maps(guide) as guide_maps:
        guide_BC = guide(views_BCHW).float()
    return student_BC, guide_BC, attention_distance(student_maps, guide_maps)


HINTS: dict[str, Callable[[nn.Module, nn.Module, torch.Tensor], HintOutput]] = {
    "features": _by_features,
    "pretrained": _by_features,
    "attention": _by_attention,
}
"""Name in params.yaml -> function of (student, guide, views (B, 3, H, W))."""
