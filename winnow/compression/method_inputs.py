"""The inputs of every compression method: images, visible labels, and the folders of its parent and of dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import ImageSet


@dataclass(frozen=True)
class MethodInputs:
    """Data and folders that a method reads. It writes model.onnx, and weights if it has any, to its own folder."""

    images: ImageSet
    budget: NDArray[np.int64]
    """Indices of the training images whose labels may be used."""
    labels_N: NDArray[np.int64]
    """Class of each image; -1 wherever the label must not be used."""
    parent: Path
    dense: Path
    pretrained: Path
    """Folder of `pretrain`, with the backbone without a head."""
    scratch: Path
    """Folder for checkpoints."""
    answers: Path | None = None
    """Folder of cached teacher logits for all candidates (winnow/compression/teacher_cache.py); None: no cache."""
