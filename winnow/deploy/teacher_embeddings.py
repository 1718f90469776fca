"""Read the embeddings of all images that the step embed wrote, as a memory map, and as targets of a training.

Rows of the test split, which only the report reads, and of images that were left out are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.data.dataset import TRAIN, ImageSet
from winnow.errors import ArtifactError

EMBEDDINGS_FILE = "embeddings.npy"
KEYS_FILE = "keys.npy"
"""For each embedding the key of the image's pixels, uint8 (N, 16); 0 where an image was not embedded."""
ROWS_AT_ONCE = 8192
"""Embeddings that are read or copied at once."""


def has_embeddings(folder: Path | None) -> TypeGuard[Path]:
    """Return whether the folder of embed holds embeddings: not without a teacher."""
    return folder is not None and (folder / EMBEDDINGS_FILE).is_file()


@dataclass(frozen=True)
class TeacherTargets:
    """Centred embeddings, which a smaller network learns to predict.

    Features after a ReLU are never negative: without centring their cosines are all near 1, and a network that
    predicts the mean is almost right (docs/decisions/0037-centred-targets.md).
    """

    rows_ND: NDArray[np.float16]
    """NaN for images of the test split and those left out."""
    mean_D: NDArray[np.float32]
    """Mean over training images."""

    @property
    def width(self) -> int:
        """Return the dimension of an embedding."""
        return int(self.rows_ND.shape[1])

    def select(self, indices_B: torch.Tensor) -> torch.Tensor:
        """Return the targets of these images, float32 (B, D), on the device of the indices."""
        rows_BD = np.asarray(self.rows_ND[indices_B.cpu().numpy()], dtype=np.float32) - self.mean_D
        return torch.from_numpy(rows_BD).to(indices_B.device)


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings of an earlier run, found by the pixels of an image."""

    keys_N16: NDArray[np.uint8]
    rows_ND: NDArray[np.float16]

    def find(self, keys_M16: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the row (M,) of the image with these pixels; -1 where it was not embedded."""
        stored_N, wanted_M = (np.ascontiguousarray(keys).view("V16")[:, 0] for keys in (self.keys_N16, keys_M16))
        numbers = np.unique(np.concatenate([stored_N, wanted_M]), return_inverse=True)[1]
        row_of_number = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
        embedded_N = np.flatnonzero(self.keys_N16.any(1))
        row_of_number[numbers[embedded_N]] = embedded_N
        found_M: NDArray[np.int64] = row_of_number[numbers[len(stored_N) :]]
        return found_M


def load_stored_embeddings(folder: Path) -> StoredEmbeddings | None:
    """Return the embeddings in a folder of embed with their keys; None where it has none."""
    try:
        keys_N16, rows_ND = np.load(folder / KEYS_FILE), load_embeddings(folder)
    except (OSError, ValueError, ArtifactError):
        return None
    return StoredEmbeddings(keys_N16, rows_ND) if len(keys_N16) == len(rows_ND) else None


def load_targets(folder: Path, images: ImageSet) -> TeacherTargets:
    """Return the embeddings in the folder of embed as targets. Raises ArtifactError without them."""
    rows_ND, train = load_embeddings(folder), images.indices(TRAIN)
    sum_D = np.zeros(rows_ND.shape[1])
    for start in range(0, len(train), ROWS_AT_ONCE):
        sum_D += rows_ND[train[start : start + ROWS_AT_ONCE]].sum(0, dtype=np.float64)
    return TeacherTargets(rows_ND, (sum_D / max(1, len(train))).astype(np.float32))


def load_embeddings(folder: Path) -> NDArray[np.float16]:
    """Return the embeddings (N, D) in the folder of embed, as a memory map. Raises ArtifactError without them."""
    try:
        rows_ND: NDArray[np.float16] = np.load(folder / EMBEDDINGS_FILE, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder / EMBEDDINGS_FILE} is missing or damaged; delete the folder and run winnow again"
        ) from error
    return rows_ND
