"""Folds of a cross-validation that keep the images of a group together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra
from winnow.random_streams import stream_seed

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Positions of the images that are trained on, and of those that are held out."""


def judged_folds(labels_L: NDArray[np.int64], groups_L: NDArray[np.int64], folds: int, seed: int) -> Iterator[Fold]:
    """Yield the folds in which a classifier of the other images can judge held-out ones, and only those it can judge.

    It cannot judge images of a class that the others lack, and it needs two classes.
    """
    for known, held_out in grouped_folds(labels_L, groups_L, folds, seed):
        classes = np.unique(labels_L[known])
        judged = held_out[np.isin(labels_L[held_out], classes)]
        if len(classes) > 1 and len(judged):
            yield known, judged


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
