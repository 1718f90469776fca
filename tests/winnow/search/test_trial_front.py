from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.search.trial_front import TrialPoint, cheapest_fitting, hypervolume, knee_point, trials_on_front


def found(*pairs: tuple[float, float]) -> list[TrialPoint]:
    return [TrialPoint(number, drop, cost) for number, (drop, cost) in enumerate(pairs)]


SOME = found((0.0, 4.0), (0.2, 2.0), (1.0, 1.5), (0.5, 2.5), (3.0, 1.0), (4.0, 1.2))


def test_the_front_is_what_nobody_beats() -> None:
    assert [each.number for each in trials_on_front(SOME)] == [4, 2, 1, 0]
    assert trials_on_front([]) == []
    assert [each.number for each in trials_on_front(found((1, 1), (1, 1)))] == [0]


@pytest.mark.thorough
@given(st.lists(st.tuples(st.integers(-3, 9), st.integers(1, 9)), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_by_the_definition(pairs: list[tuple[int, int]]) -> None:
    every = found(*pairs)
    kept = {(each.drop, each.cost) for each in trials_on_front(every)}
    beaten = {
        (a.drop, a.cost)
        for a in every
        for b in every
        if b.drop <= a.drop and b.cost <= a.cost and (b.drop, b.cost) != (a.drop, a.cost)
    }
    assert kept == {(each.drop, each.cost) for each in every} - beaten


def test_the_cheapest_within_the_allowance_is_chosen() -> None:
    assert cheapest_fitting(SOME, lambda each: each.drop <= 1.0) == SOME[2]
    assert cheapest_fitting(SOME, lambda each: each.drop <= 0.1) == SOME[0]
    assert cheapest_fitting(SOME, lambda each: False) is None


def test_the_knee_is_farthest_below_the_line() -> None:
    assert knee_point(SOME) == SOME[1]
    assert knee_point(SOME[:2]) is None
    # Neither axis' unit matters.
    assert knee_point([TrialPoint(each.number, each.drop * 7, each.cost * 1e-3) for each in SOME]) is not None
    assert knee_point([TrialPoint(each.number, each.drop * 7, each.cost * 1e-3) for each in SOME]).number == 1  # type: ignore[union-attr]


def test_hypervolume_counts_the_dominated_area() -> None:
    assert hypervolume(found((1.0, 1.0)), (3.0, 5.0)) == pytest.approx(2 * 4)
    assert hypervolume(trials_on_front(found((1.0, 3.0), (2.0, 1.0))), (3.0, 5.0)) == pytest.approx(2 * 2 + 1 * 2)
    assert hypervolume(found((9.0, 1.0)), (3.0, 5.0)) == 0
    assert hypervolume(found((1.0, 9.0)), (3.0, 5.0)) == 0
    assert hypervolume([], (3.0, 5.0)) == 0
    # Against a fine grid.
    drops, costs = np.meshgrid(np.linspace(0, 5, 1001)[:-1] + 0.0025, np.linspace(0, 5, 1001)[:-1] + 0.0025)
    covered = np.zeros_like(drops, dtype=bool)
    for each in SOME:
        covered |= (drops > each.drop) & (costs > each.cost)
    assert hypervolume(trials_on_front(SOME), (5.0, 5.0)) == pytest.approx(float(covered.mean()) * 25, abs=0.05)


def test_another_point_never_takes_away() -> None:
    before = hypervolume(trials_on_front(SOME), (5.0, 5.0))
    assert hypervolume(trials_on_front([*SOME, TrialPoint(9, 0.1, 3.0)]), (5.0, 5.0)) >= before
    assert hypervolume(trials_on_front([*SOME, TrialPoint(9, 4.9, 4.9)]), (5.0, 5.0)) == before


def test_on_other_images_a_front_is_taken_as_it_was_chosen() -> None:
    pair = trials_on_front(found((1.0, 3.0), (2.0, 1.0)))  # the cheaper one first
    assert [each.cost for each in pair] == [1.0, 3.0]
    assert hypervolume(pair, (3.0, 5.0), [0.5, 2.5]) == pytest.approx(
        2 * 2.5 + 2 * 0.5
    )  # lucky there, and left all the same
    assert hypervolume(pair, (3.0, 5.0), [-4.0, 9.0]) == pytest.approx(2 * 3.0)
