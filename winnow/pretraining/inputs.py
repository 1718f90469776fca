"""The inputs of a pretraining method beside its settings and the backbone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PretrainingInputs:
    """The size of views, and the teacher's embeddings."""

    side: int
    """The side of the views in pixels."""
    teacher_ND: NDArray[np.float16] | None = None
    """The embedding of each image of the data set, NaN for those of the test split; None without a teacher."""
