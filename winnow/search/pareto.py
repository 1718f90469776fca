"""Which trials nobody beats, which of them to take, and how good a front is as a whole. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrialPoint:
    """A finished trial: what it loses and what it costs, both the less the better."""

    number: int
    drop: float
    """Points of top-1 below the better of dense and dense-kd; of changed answers, where there is no label."""
    cost: float
    """ms, MB, mJ, or seconds an image."""


def front(found: Sequence[TrialPoint]) -> list[TrialPoint]:
    """Those that no other beats in drop and cost at once, the cheapest first; of equals the first."""
    kept: list[TrialPoint] = []
    for each in sorted(found, key=lambda one: (one.cost, one.drop, one.number)):
        if not kept or each.drop < kept[-1].drop:
            kept.append(each)
    return kept


def choose(found: Sequence[TrialPoint], fits: Callable[[TrialPoint], bool]) -> TrialPoint | None:
    """The cheapest that fits."""
    cheapest_first = sorted(found, key=lambda one: (one.cost, one.drop, one.number))
    return next((each for each in cheapest_first if fits(each)), None)


def knee(found: Sequence[TrialPoint]) -> TrialPoint | None:
    """Where more savings begin to cost much: the point of the front farthest below the line between its ends.

    Both axes are scaled to the front's own range (Satopaa et al. 2011, Kneedle). None for fewer than three points.
    """
    points = front(found)
    if len(points) < 3:
        return None
    costs, drops = (np.array([getattr(each, axis) for each in points]) for axis in ("cost", "drop"))
    x, y = ((axis - axis.min()) / (axis.max() - axis.min()) for axis in (costs, drops))
    return points[int(np.argmax(1 - x - y))]


def hypervolume(
    chosen: Sequence[TrialPoint], worst: tuple[float, float], drops: Sequence[float] | None = None
) -> float:
    """Area that a front, the cheapest first, dominates up to `worst` = (drop, cost) (Zitzler and Thiele 1999).

    Whoever can spend some cost takes the file of the front that costs no more and loses least. `drops`: what those
    files lose on other images than they were chosen on; a gain counts like no loss.
    """
    ends = [*(each.cost for each in chosen), worst[1]][1:]
    widths = (max(0.0, min(end, worst[1]) - each.cost) for each, end in zip(chosen, ends, strict=True))
    lost = [each.drop for each in chosen] if drops is None else drops
    return sum(width * (worst[0] - min(max(drop, 0.0), worst[0])) for width, drop in zip(widths, lost, strict=True))
