from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.search.trial_front import TrialPoint, cheapest_fitting, hypervolume, knee_point, trials_on_front


def make_points(*pairs: tuple[float, float]) -> list[TrialPoint]:
    return [TrialPoint(number, drop, cost) for number, (drop, cost) in enumerate(pairs)]


POINTS = make_points((0.0, 4.0), (0.2, 2.0), (1.0, 1.5), (0.5, 2.5), (3.0, 1.0), (4.0, 1.2))


def test_the_front_has_no_dominated_trials() -> None:
    assert [point.number for point in trials_on_front(POINTS)] == [4, 2, 1, 0]
    assert trials_on_front([]) == []
    assert [point.number for point in trials_on_front(make_points((1, 1), (1, 1)))] == [0]


@pytest.mark.thorough
@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(1, 9)), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_the_front_follows_the_definition(pairs: list[tuple[int, int]]) -> None:
    points = make_points(*pairs)
    front = {(point.drop, point.cost) for point in trials_on_front(points)}
    dominated = {
        (a.drop, a.cost)
        for a in points
        for b in points
        if b.drop <= a.drop and b.cost <= a.cost and (b.drop, b.cost) != (a.drop, a.cost)
    }
    assert front == {(point.drop, point.cost) for point in points} - dominated


def test_the_cheapest_within_the_limit_is_chosen() -> None:
    assert cheapest_fitting(POINTS, lambda point: point.drop <= 1.0) == POINTS[2]
    assert cheapest_fitting(POINTS, lambda point: point.drop <= 0.1) == POINTS[0]
    assert cheapest_fitting(POINTS, lambda point: False) is None


def test_the_knee_is_farthest_below_the_line() -> None:
    assert knee_point(POINTS) == POINTS[1]
    assert knee_point(POINTS[:2]) is None
    # The result does not depend on the units of the axes.
    assert knee_point([TrialPoint(point.number, point.drop * 7, point.cost * 1e-3) for point in POINTS]) is not None
    assert knee_point([TrialPoint(point.number, point.drop * 7, point.cost * 1e-3) for point in POINTS]).number == 1  # type: ignore[union-attr]


def test_hypervolume_counts_the_dominated_area() -> None:
    assert hypervolume(make_points((1.0, 1.0)), (3.0, 5.0)) == pytest.approx(2 * 4)
    assert hypervolume(trials_on_front(make_points((1.0, 3.0), (2.0, 1.0))), (3.0, 5.0)) == pytest.approx(2 * 2 + 1 * 2)
    assert hypervolume(make_points((9.0, 1.0)), (3.0, 5.0)) == 0
    assert hypervolume(make_points((1.0, 9.0)), (3.0, 5.0)) == 0
    assert hypervolume([], (3.0, 5.0)) == 0
    # Compared with a fine grid.
    drops, costs = np.meshgrid(np.linspace(0, 5, 1001)[:-1] + 0.0025, np.linspace(0, 5, 1001)[:-1] + 0.0025)
    covered = np.zeros_like(drops, dtype=bool)
    for point in POINTS:
        covered |= (drops > point.drop) & (costs > point.cost)
    assert hypervolume(trials_on_front(POINTS), (5.0, 5.0)) == pytest.approx(float(covered.mean()) * 25, abs=0.05)


def test_another_point_never_reduces_the_hypervolume() -> None:
    volume = hypervolume(trials_on_front(POINTS), (5.0, 5.0))
    assert hypervolume(trials_on_front([*POINTS, TrialPoint(9, 0.1, 3.0)]), (5.0, 5.0)) >= volume
    assert hypervolume(trials_on_front([*POINTS, TrialPoint(9, 4.9, 4.9)]), (5.0, 5.0)) == volume


def test_hypervolume_of_a_front_with_drops_on_other_images() -> None:
    front = trials_on_front(make_points((1.0, 3.0), (2.0, 1.0)))  # the cheaper one first
    assert [point.cost for point in front] == [1.0, 3.0]
    assert hypervolume(front, (3.0, 5.0), [0.5, 2.5]) == pytest.approx(
        2 * 2.5 + 2 * 0.5
    )  # the front is not computed again from these drops
    assert hypervolume(front, (3.0, 5.0), [-4.0, 9.0]) == pytest.approx(2 * 3.0)
