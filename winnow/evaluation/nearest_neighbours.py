"""Exact search for nearest neighbours, by scikit-learn; its time is the product of bank and queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.errors import MissingExtra


def nearest_neighbours(
    bank_MD: NDArray[np.float32], count: int, queries_QD: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return Euclidean distances and positions in the bank, both (Q, count), the nearest first.

    Without queries the neighbours of each vector of the bank among the others. Fewer than `count` where the bank is
    smaller. Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    count = min(count, len(bank_MD) - (queries_QD is None))
    queries = len(bank_MD if queries_QD is None else queries_QD)
    if count < 1 or queries == 0:
        return np.zeros((queries, max(count, 0)), np.float32), np.zeros((queries, max(count, 0)), np.int64)
    distances, positions = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(bank_MD).kneighbors(queries_QD)
    return np.asarray(distances, dtype=np.float32), np.asarray(positions, dtype=np.int64)


def cosines_at(distances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of vectors of length 1 at these Euclidean distances."""
    return np.asarray(1 - np.square(distances) / 2, dtype=np.float32)
