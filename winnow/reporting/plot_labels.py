"""Place labels beside markers without overlaps, by a greedy search over positions around each marker.

Every label tries eight directions at growing distances and takes the first position where it overlaps no other label,
no marker and no edge; a distant one gets a thin line to its marker. This is deterministic, and good enough for a few
dozen points; no optimum is sought.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Label:
    """A label's text and its marker."""

    text: str
    x: float
    y: float
    """Data coordinates of the marker, like `x`."""
    area: float
    """Area of the marker, points squared."""
    bold: bool = False


Box = tuple[float, float, float, float]
"""Left, bottom, right, top; pixels."""
DIRECTIONS = (0, 180, 90, 270, 45, 135, 315, 225)
DISTANCES = (3.0, 10.0, 20.0, 32.0, 46.0, 62.0, 80.0)
"""Points between the marker's edge and the label."""
FAR = 12.0
LINE_STEP = 6.0
"""Pixels between two boxes along a line."""
GAP = 2.0
"""Pixels kept free around every label."""


def place_labels(axes: Axes, labels: Sequence[Label], line: Sequence[tuple[float, float]] = ()) -> None:
    """Write the labels. `line`: a polyline in data coordinates that they avoid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    scale = figure.dpi / 72
    centres = _pixels(axes, [(label.x, label.y) for label in labels])
    radii = [math.sqrt(label.area / math.pi) * scale for label in labels]
    markers: list[Box] = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(centres, radii, strict=True)]
    frame: Box = axes.get_window_extent().extents
    occupied = markers + _boxes_along(_pixels(axes, line))
    for label, (x, y), radius in zip(labels, centres, radii, strict=True):
        text = axes.annotate(
            label.text, (label.x, label.y), (0, 0), textcoords="offset points", va="bottom", ha="left", fontsize=8.5
        )
        text.set_fontweight("bold" if label.bold else "normal")
        extent = text.get_window_extent(renderer)
        candidates = list(_candidate_boxes((x, y), radius, (extent.width, extent.height), scale))
        free = ((box, far) for box, far in candidates if _is_inside(box, frame) and not _overlaps(box, occupied))
        (left, bottom, right, top), far = next(free, candidates[0])
        occupied.append((left, bottom, right, top))
        text.set_position(((left - x) / scale, (bottom - y) / scale))
        if far > FAR:
            nearest = (min(max(x, left), right), min(max(y, bottom), top))
            ends = axes.transData.inverted().transform([(x, y), nearest])
            axes.plot(*ends.T, color="#6b7280", linewidth=0.6, zorder=1, scalex=False, scaley=False)


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in axes.transData.transform(list(points))] if points else []


def _boxes_along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Return small boxes along a polyline."""
    boxes: list[Box] = []
    for (x, y), (to_x, to_y) in pairwise(line):
        steps = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / LINE_STEP))
        for step in range(steps + 1):
            px, py = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
            boxes.append((px - 1, py - 1, px + 1, py + 1))
    return boxes


def _candidate_boxes(
    centre: tuple[float, float], radius: float, size: tuple[float, float], scale: float
) -> Iterator[tuple[Box, float]]:
    """Yield boxes of `size` around a marker with their distance in points, nearest first."""
    (x, y), (width, height) = centre, size
    for distance in DISTANCES:
        for degrees in DIRECTIONS:
            dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            reach = radius + distance * scale
            left = x + reach * dx + width * (round(dx, 3) - 1) / 2
            bottom = y + reach * dy + height * (round(dy, 3) - 1) / 2
            yield (left, bottom, left + width, bottom + height), distance


def _overlaps(box: Box, obstacles: Sequence[Box]) -> bool:
    return any(
        box[0] - GAP < obstacle[2]
        and obstacle[0] < box[2] + GAP
        and box[1] - GAP < obstacle[3]
        and obstacle[1] < box[3] + GAP
        for obstacle in obstacles
    )


def _is_inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
