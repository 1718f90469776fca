"""Vectors of length 1, whose products are cosines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_LENGTH = 1e-12
"""Shorter vectors are not stretched to length 1."""


def unit_vectors(rows_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each row divided by its length, float32 (M, D)."""
    lengths_M1 = np.linalg.norm(rows_MD, axis=1, keepdims=True)
    return np.asarray(rows_MD / np.maximum(lengths_M1, SMALLEST_LENGTH), dtype=np.float32)


def centred_unit_vectors(rows_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1 after their mean is subtracted, float32 (M, D).

    Features after a ReLU are never negative, so without centring all cosines are near 1.
    """
    return unit_vectors(rows_MD - rows_MD.mean(0))
