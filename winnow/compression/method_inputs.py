"""What every method is given: images, the labels it may see, the folders of its parent and of dense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import ImageSet


@dataclass(frozen=True)
class Inputs:
    """A method reads these and writes model.onnx (and weights, where there are any) into the folder it is given."""

    images: ImageSet
    budget: NDArray[np.int64]
    """Training images whose label may be used."""
    labels_N: NDArray[np.int64]
    """-1 wherever a label must not be seen."""
    parent: Path
    dense: Path
    pretrained: Path
    """The backbone without a head, as `pretrain` left it."""
    scratch: Path
    """Checkpoints."""
    answers: Path | None = None
    """What teachers said, for all candidates (winnow/compression/teacher_cache.py); None: nothing is kept."""
