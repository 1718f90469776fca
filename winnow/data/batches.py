"""Endless seeded batches: a batch is a function of its step, so a resumed training sees what it would have seen.

Epoch e is a permutation of all images drawn from (seed, e); batch `step` is the stretch from step*B to (step+1)*B of
the epochs laid end to end. Every batch is full, every image is seen equally often, and small sets (fewer images than
a batch) need no special case.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.random_streams import stream_seed


class BatchSource(Protocol):
    """What a training takes its batches from."""

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W) and labels int64 (B,), a function of the step alone."""


class Batches:
    """uint8 images (N, H, W, 3), usually a memory map, and their labels (N,), -1 where there is none."""

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.int64],
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int,
    ) -> None:
        if len(indices) == 0:
            raise ValueError("no images to train on")
        self.images_NHWC, self.labels_N, self.indices = images_NHWC, labels_N, indices
        self.batch_size, self.seed = batch_size, seed
        self._order = lru_cache(maxsize=4)(self._draw)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass, at least one."""
        return max(1, len(self.indices) // self.batch_size)

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(stream_seed(self.seed, "order", epoch)).permutation(self.indices)

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (B, 3, H, W), channels last in memory, and labels int64 (B,)."""
        first, count = step * self.batch_size, len(self.indices)
        positions = np.arange(first, first + self.batch_size)
        epochs, places = positions // count, positions % count
        chosen = np.concatenate([self._order(int(e))[places[epochs == e]] for e in np.unique(epochs)])
        images_BHWC = torch.from_numpy(np.ascontiguousarray(self.images_NHWC[chosen]))
        return images_BHWC.permute(0, 3, 1, 2), torch.from_numpy(self.labels_N[chosen].astype(np.int64))


class JoinedBatches:
    """Each batch is one of each source, one behind the other: a few labelled images beside many others, say."""

    def __init__(self, *sources: BatchSource) -> None:
        self.sources = sources

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W), channels last in memory, and labels int64 (B,)."""
        images, labels = zip(*(source.at(step) for source in self.sources), strict=True)
        return torch.cat(images), torch.cat(labels)
