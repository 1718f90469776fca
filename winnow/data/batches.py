"""Endless seeded batches. A batch depends on its step alone, so a resumed training sees the same batches.

Epoch e is a permutation of all images drawn from (seed, e); batch `step` covers positions step*B to (step+1)*B of
the concatenated epochs. Every batch is full, every image is seen equally often, and sets smaller than a batch need no
special case.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.errors import DataError
from winnow.random_streams import stream_seed

LABELLED_SHARE = 1 / 8
"""Share of a batch drawn from the labelled images where some have no label: one to seven, as in FixMatch."""


def labelled_per_batch(batch_size: int) -> int:
    """Return how many images of a batch are drawn from the labelled images, where some have no label."""
    return min(batch_size - 1, max(1, round(batch_size * LABELLED_SHARE)))  # none in a batch of one


class BatchSource(Protocol):
    """A source of training batches."""

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W) and labels int64 (B,); they depend on the step alone."""


class Batches:
    """Batches of uint8 images (N, H, W, 3), usually a memory map, and their labels (N,), -1 for no label."""

    def __init__(
        self,
        images_NHWC: NDArray[np.uint8],
        labels_N: NDArray[np.int64],
        indices: NDArray[np.int64],
        batch_size: int,
        seed: int,
    ) -> None:
        if len(indices) == 0:
            raise DataError("no image is in the training split, so there is nothing to train on; add images")
        self.images_NHWC, self.labels_N, self.indices = images_NHWC, labels_N, indices
        self.batch_size, self.seed = batch_size, seed
        self._epoch_order = lru_cache(maxsize=4)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of full batches in one pass, at least one."""
        return max(1, len(self.indices) // self.batch_size)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(stream_seed(self.seed, "order", epoch)).permutation(self.indices)

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W), channels last in memory, and labels int64 (B,)."""
        start, count = step * self.batch_size, len(self.indices)
        positions_B = np.arange(start, start + self.batch_size)
        epochs_B, offsets_B = positions_B // count, positions_B % count
        indices_B = np.concatenate([self._epoch_order(int(e))[offsets_B[epochs_B == e]] for e in np.unique(epochs_B)])
        images_BHWC = torch.from_numpy(np.ascontiguousarray(self.images_NHWC[indices_B]))
        return images_BHWC.permute(0, 3, 1, 2), torch.from_numpy(self.labels_N[indices_B].astype(np.int64))


class JoinedBatches:
    """Batches that concatenate one batch of each source, such as a few labelled images and many others."""

    def __init__(self, *sources: BatchSource) -> None:
        self.sources = sources

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images uint8 (B, 3, H, W), channels last in memory, and labels int64 (B,)."""
        images, labels = zip(*(source.at(step) for source in self.sources), strict=True)
        return torch.cat(images), torch.cat(labels)
