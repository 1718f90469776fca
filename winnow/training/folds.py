"""Folds of a cross-validation that keep the images of a group together."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra
from winnow.random_streams import stream_seed

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Positions of the images that are trained on, and of those that are held out."""


def grouped_folds(labels_L: NDArray[np.int64], groups_L: NDArray[np.int64], folds: int, seed: int) -> list[Fold]:
    """Return the folds. Images of one group share a fold; classes are spread evenly (StratifiedGroupKFold)."""
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=stream_seed(seed, "folds"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        return list(splitter.split(labels_L, labels_L, groups_L))
