from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.evaluation.pareto import pareto_front

POINTS = st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=12)


def test_dominated_points_are_excluded_and_equal_ones_kept() -> None:
    assert pareto_front([(1, 1), (2, 2), (0, 3), (1, 1)]) == [0, 2, 3]
    assert pareto_front([]) == []
    assert pareto_front([(3.0,), (2.0,), (2.0,)]) == [1, 2]


@pytest.mark.thorough
@given(POINTS)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_the_front_follows_the_definition(points: list[tuple[int, ...]]) -> None:
    table = np.array(points).reshape(-1, 3)
    expected = [
        index for index, point in enumerate(table) if not ((table <= point).all(1) & (table < point).any(1)).any()
    ]
    assert pareto_front(points) == expected


def test_points_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        pareto_front([(1, 2), (1, 2, 3)])
