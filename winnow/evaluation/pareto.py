"""The Pareto front: the points that no other point beats. Used by the selection, the search and the plots."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the points that are not dominated, in their order; less is better in every coordinate.

    A point is dominated if another is at least as good in every coordinate and better in one. Equal points are on the
    front together. Raises ValueError for points of different lengths.
    """
    return [
        index
        for index, point in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and tuple(other) != tuple(point) for other in points
        )
    ]
