"""Place labels beside markers without overlaps, by adjustText."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ITERATIONS, POINTS_PER_SEGMENT = 500, 60
"""A fixed number of iterations, so that the picture depends on no clock; points along each segment to avoid."""


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


def place_labels(axes: Axes, labels: Sequence[Label], line: Sequence[tuple[float, float]] = ()) -> None:
    """Write the labels. `line`: a polyline in data coordinates that they avoid."""
    if not labels:
        return
    from adjustText import adjust_text

    texts = [
        axes.text(label.x, label.y, label.text, size=8.5, weight="bold" if label.bold else "normal", ha="center")
        for label in labels
    ]
    x, y = [label.x for label in labels], [label.y for label in labels]
    markers = axes.scatter(x, y, s=[1.6 * label.area for label in labels], alpha=0)
    along_ND = _along(axes, line)
    adjust_text(
        texts,
        x=along_ND[:, 0],
        y=along_ND[:, 1],
        objects=markers,
        target_x=x,
        target_y=y,
        ax=axes,
        expand=(1.05, 1.25),
        force_text=(0.2, 0.4),
        force_static=(0.1, 0.35),
        force_pull=(0.02, 0.03),
        min_arrow_len=14,
        iter_lim=ITERATIONS,
        arrowprops={"arrowstyle": "-", "color": "#6b7280", "lw": 0.6, "shrinkB": 4},
    )


def _along(axes: Axes, line: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Return points along the polyline in data coordinates (N, 2), evenly spaced on the page."""
    if len(line) < 2:
        return np.array(line, dtype=np.float64).reshape(-1, 2)
    corners_ND = axes.transData.transform(np.array(line))
    segments = [np.linspace(start, end, POINTS_PER_SEGMENT) for start, end in pairwise(corners_ND)]
    return np.asarray(axes.transData.inverted().transform(np.concatenate(segments)), dtype=np.float64)
