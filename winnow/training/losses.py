"""Losses that several trainings share."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cosine_distance(first_BD: torch.Tensor, second_BD: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine of each pair of rows, mean over the batch, scalar float32 from 0 to 2.

    Raises ValueError where shapes differ.
    """
    if first_BD.shape != second_BD.shape:
        raise ValueError(f"both need the same shape, got {tuple(first_BD.shape)} and {tuple(second_BD.shape)}")
    return (1 - F.cosine_similarity(first_BD.float(), second_BD.float(), dim=1)).mean()
