"""Train a network to predict the features of another one beside its own task, through a linear projector.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets (ICLR 2015, arXiv 1412.6550). The projector is trained along and
then dropped. Only the direction of features counts, since norms depend on the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from winnow.models.classifier_head import feature_dim, head_path
from winnow.random_streams import stream_seed
from winnow.training.losses import cosine_distance


class FeatureProjector(nn.Module):
    """A network with a linear layer that maps its features to another's width. Its outputs are the network's."""

    def __init__(self, student: nn.Module, width: int, seed: int) -> None:
        super().__init__()
        self.student = student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "hint"))
            self.translate = nn.Linear(feature_dim(student), width)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the student's logits (B, C)."""
        logits: torch.Tensor = self.student(x_BCHW)
        return logits


@contextmanager
def capture_features(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the features that reach the head in each forward pass within, (B, D)."""
    features: list[torch.Tensor] = []

    def collect(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features.append(inputs[0].flatten(1))

    hook = model.get_submodule(head_path(model)).register_forward_pre_hook(collect)
    try:
        yield features
    finally:
        hook.remove()


def predict_embeddings(
    model: nn.Module, views_BCHW: torch.Tensor, embeddings_BD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (student logits (B, C), distance of its projected features from the embeddings, a scalar)."""
    assert isinstance(model, FeatureProjector)
    with capture_features(model.student) as student_features:
        student_BC = model(views_BCHW).float()
    return student_BC, cosine_distance(model.translate(student_features[-1]), embeddings_BD)
