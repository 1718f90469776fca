"""The Pareto front of a search's trials, which point of it to choose, and its quality as a whole. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from winnow.evaluation.pareto import pareto_front


@dataclass(frozen=True)
class TrialPoint:
    """A finished trial by what it loses and what it costs; less is better in both."""

    number: int
    drop: float
    """Points of top-1 below the better of dense and dense-kd; changed predictions in percent without labels."""
    cost: float
    """ms, MB, mJ, or seconds per image."""


def trials_on_front(points: Sequence[TrialPoint]) -> list[TrialPoint]:
    """Return the points that no other beats in drop and cost at once, the cheapest first; of equal points the first."""
    first_of_equals: dict[tuple[float, float], TrialPoint] = {}
    for point in sorted(points, key=_order):
        first_of_equals.setdefault((point.cost, point.drop), point)
    distinct = list(first_of_equals.values())
    return [distinct[index] for index in pareto_front(list(first_of_equals))]


def _order(point: TrialPoint) -> tuple[float, float, int]:
    return point.cost, point.drop, point.number


def cheapest_fitting(points: Sequence[TrialPoint], fits: Callable[[TrialPoint], bool]) -> TrialPoint | None:
    """Return the cheapest point that fits, or None."""
    cheapest_first = sorted(points, key=_order)
    return next((point for point in cheapest_first if fits(point)), None)


def knee_point(points: Sequence[TrialPoint]) -> TrialPoint | None:
    """Return the front's knee, beyond which savings cost much: the point farthest below the line between the front's
    ends.

    Both axes are scaled to the front's own range (Satopaa et al. 2011, Kneedle). None for fewer than three points.
    """
    points = trials_on_front(points)
    if len(points) < 3:
        return None
    costs, drops = (np.array([getattr(point, axis) for point in points]) for axis in ("cost", "drop"))
    x, y = ((axis - axis.min()) / (axis.max() - axis.min()) for axis in (costs, drops))
    return points[int(np.argmax(1 - x - y))]


def hypervolume(
    chosen: Sequence[TrialPoint], worst: tuple[float, float], drops: Sequence[float] | None = None
) -> float:
    """Return the area that a front, the cheapest first, dominates up to `worst` = (drop, cost) (Zitzler and Thiele
    1999).

    At any cost limit counts the front's most accurate file within it. `drops`: the losses of the front's files on other
    images than they were chosen on; a gain counts as no loss.
    """
    ends = [*(point.cost for point in chosen), worst[1]][1:]
    widths = (max(0.0, min(next_cost, worst[1]) - point.cost) for point, next_cost in zip(chosen, ends, strict=True))
    losses = [point.drop for point in chosen] if drops is None else drops
    return sum(width * (worst[0] - min(max(drop, 0.0), worst[0])) for width, drop in zip(widths, losses, strict=True))
