"""Hints: what a student learns from inside its teacher, beside the answers.

features    the features before the head, through a linear layer that is learned along and thrown away (Romero et al.
            2015, arXiv 1412.6550; direction alone, as in Tian et al. 2020, arXiv 1910.10699: lengths differ by width)
attention   where the networks look: the sum of squared channels at each resolution that both have, as a unit vector
            (Zagoruyko and Komodakis 2017, arXiv 1612.03928)
pretrained  as `features`, but those of the backbone that was pretrained without labels and not fine-tuned: on
            unlabelled images it knows what a few labels made the fine-tuned network forget

All return one number a batch, 0 where student and teacher agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from winnow.errors import ConfigError
from winnow.models.classifier_head import feature_dim, head_path
from winnow.random_streams import stream_seed

HintOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class FeatureProjector(nn.Module):
    """A student with the layer that translates its features; answers as the student does."""

    def __init__(self, student: nn.Module, width: int, seed: int) -> None:
        super().__init__()
        self.student = student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "hint"))
            self.translate = nn.Linear(feature_dim(student), width)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """The student's logits."""
        logits: torch.Tensor = self.student(x_BCHW)
        return logits


@contextmanager
def features_of(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What reaches the head in each forward pass within, (B, D)."""
    found: list[torch.Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].flatten(1))

    hook = model.get_submodule(head_path(model)).register_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def maps_of(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """The last map of each resolution in a forward pass within: height -> (B, C, H, W)."""
    found: dict[int, torch.Tensor] = {}

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] > 1:
            found[output.shape[2]] = output

    hooks = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def direction_gap(student_BD: torch.Tensor, teacher_BD: torch.Tensor) -> torch.Tensor:
    """1 - cosine, mean over the batch; 0 to 2."""
    return (1 - F.cosine_similarity(student_BD.float(), teacher_BD.float(), dim=1)).mean()


def attention_gap(student: dict[int, torch.Tensor], teacher: dict[int, torch.Tensor]) -> torch.Tensor:
    """Squared distance of the unit attention maps, summed over places, mean over the batch and over resolutions."""
    shared = [
        height for height in student if height in teacher and student[height].shape[3] == teacher[height].shape[3]
    ]
    if not shared:
        raise ConfigError(
            "candidates: hint: attention compares maps of one resolution, and student and teacher share none; "
            "use hint: features"
        )
    gaps = [(_attention(student[at]) - _attention(teacher[at])).square().sum(1).mean() for at in shared]
    return torch.stack(gaps).mean()


def _attention(map_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, H * W), of length 1."""
    return F.normalize(map_BCHW.float().square().sum(1).flatten(1), dim=1)


def _by_features(model: nn.Module, guide: nn.Module, views_BCHW: torch.Tensor) -> HintOutput:
    assert isinstance(model, FeatureProjector)
    with features_of(model.student) as seen:
        student_BC = model(views_BCHW).float()
    with torch.no_grad(), features_of(guide) as shown:
        guide_BC = guide(views_BCHW).float()
    return student_BC, guide_BC, direction_gap(model.translate(seen[-1]), shown[-1])


def _by_attention(model: nn.Module, guide: nn.Module, views_BCHW: torch.Tensor) -> HintOutput:
    with maps_of(model) as seen:
        student_BC = model(views_BCHW).float()
    with torch.no_grad(), maps_of(guide) as shown:
        guide_BC = guide(views_BCHW).float()
    return student_BC, guide_BC, attention_gap(seen, shown)


HINTS: dict[str, Callable[[nn.Module, nn.Module, torch.Tensor], HintOutput]] = {
    "features": _by_features,
    "pretrained": _by_features,
    "attention": _by_attention,
}
"""(student, guide, views (B, 3, H, W)) -> the student's logits, the guide's, and the gap."""
