from __future__ import annotations

import numpy as np
import pytest

from winnow.evaluation.nearest_neighbours import cosines_at, nearest_neighbours
from winnow.evaluation.unit_vectors import unit_vectors


def test_neighbours_are_the_nearest_of_all_others() -> None:
    vectors_MD = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    all_MM = np.linalg.norm(vectors_MD[:, None] - vectors_MD[None], axis=2)
    np.fill_diagonal(all_MM, np.inf)
    distances, positions = nearest_neighbours(vectors_MD, 3)
    np.testing.assert_array_equal(positions, np.argsort(all_MM, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(all_MM, axis=1)[:, :3], rtol=1e-4)
    _, of_queries = nearest_neighbours(vectors_MD, 1, vectors_MD[:7])
    assert of_queries[:, 0].tolist() == list(range(7))


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (3, 2)])
def test_a_small_bank_has_fewer(size: int, expected: int) -> None:
    distances, positions = nearest_neighbours(np.eye(size, dtype=np.float32), 5)
    assert distances.shape == positions.shape == (size, expected)


def test_cosines_follow_from_distances() -> None:
    vectors_MD = unit_vectors(np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32))
    distances, positions = nearest_neighbours(vectors_MD, 4)
    expected = np.take_along_axis(vectors_MD @ vectors_MD.T, positions, axis=1)
    np.testing.assert_allclose(cosines_at(distances), expected, atol=1e-5)
