"""The candidates as an interactive plot of accuracy over latency, by Bokeh, inside the page and without network.

Pointing at a candidate shows its figures; a click on a method in the legend hides or shows its candidates. The same
numbers give the same bytes: Bokeh's identifiers are replaced by their order.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from winnow.errors import MissingExtra
from winnow.evaluation.pareto import pareto_front
from winnow.reporting.html import Html, tag

COLOURS = ("#5b6270", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""One for each method, in the order of their appearance; Okabe and Ito (2008)."""
WINNER_COLOUR, LINE_COLOUR = "#d55e00", "#0072b2"
INK = "#1f2430"
SMALLEST_MARKER, LARGEST_MARKER = 8.0, 30.0
"""Diameters in pixels; the area grows with the file."""
OFFSETS = (6.0, -18.0)
"""Neighbouring names stand above and below their markers in turn, in pixels."""
TARGET = "interactive-front"
IDENTIFIER = re.compile(r'"p(\d{4,})"')


@dataclass(frozen=True)
class FrontPoint:
    """A candidate that was timed, with what is shown beside it, as text."""

    name: str
    method: str
    latency_ms: float
    accuracy_percent: float
    size_mb: float
    is_winner: bool
    is_int8: bool
    is_labelled: bool
    """True if its name stands beside the marker; otherwise a pointer shows it."""
    details: tuple[tuple[str, str], ...]
    """(label, text) of what a pointer shows."""


def draw_interactive_front(points: Sequence[FrontPoint], measure: str, fallback: Html) -> Html:
    """Return the plot with its script. `measure`: what accuracy_percent is; `fallback`: shown without JavaScript.

    Raises MissingExtra without Bokeh.
    """
    try:
        from bokeh.core.types import ID
        from bokeh.embed import json_item
        from bokeh.resources import Resources
    except ModuleNotFoundError as error:
        raise MissingExtra("bokeh", "report") from error
    item = json.dumps(json_item(_plot(points, measure), ID(TARGET))).replace("<", "\\u003c")
    order: dict[str, str] = {}
    item = IDENTIFIER.sub(lambda match: f'"p{order.setdefault(match[1], str(1000 + len(order)))}"', item)
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    script = f"{library}\nBokeh.embed.embed_item({item});"
    return Markup("").join(
        [
            tag("div", more=f'id="{TARGET}"'),
            tag("script", Markup(script.replace("</script", "<\\/script"))),
            tag("noscript", fallback),
        ]
    )


def _plot(points: Sequence[FrontPoint], measure: str) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, WheelZoomTool
    from bokeh.models.annotations import LabelSet
    from bokeh.plotting import figure

    latencies = [point.latency_ms for point in points]
    plot = figure(
        height=430,
        sizing_mode="stretch_width",
        max_width=1150,
        x_axis_type="log" if max(latencies) > 4 * min(latencies) else "linear",
        x_axis_label="one image on the fastest runtime, ms (left is better)",
        y_axis_label=f"{measure} on validation, % (up is better)",
        tools="pan,box_zoom,reset,save",
        toolbar_location="above",
    )
    plot.add_tools(WheelZoomTool())
    if max(latencies) > 4 * min(latencies):
        plot.xaxis.ticker = [digit * 10**power for power in range(-3, 5) for digit in (1, 2, 5)]
    for axis_range in (plot.x_range, plot.y_range):
        axis_range.update(range_padding=0.12)
    line = sorted((point.latency_ms, point.accuracy_percent) for point in points)
    front = [line[index] for index in pareto_front([(latency, -accuracy) for latency, accuracy in line])]
    plot.line(*map(list, zip(*front, strict=True)), color=LINE_COLOUR, line_width=1.5, line_dash="dashed")
    largest, methods = max(point.size_mb for point in points), list(dict.fromkeys(point.method for point in points))
    labelled = [point.name for point in sorted(points, key=lambda point: point.latency_ms) if point.is_labelled]
    offsets = dict.fromkeys((point.name for point in points), 0.0)
    offsets |= {name: OFFSETS[position % 2] for position, name in enumerate(labelled)}
    renderers: list[Any] = []
    for method, colour in zip(methods, (COLOURS * len(methods))[: len(methods)], strict=True):
        rows = [point for point in points if point.method == method]
        source = ColumnDataSource(
            {
                "x": [point.latency_ms for point in rows],
                "y": [point.accuracy_percent for point in rows],
                "name": [point.name for point in rows],
                "label": [point.name if point.is_labelled else "" for point in rows],
                "offset": [offsets[point.name] for point in rows],
                "marker": ["square" if point.is_int8 else "circle" for point in rows],
                "size": [_diameter(point.size_mb, largest) for point in rows],
                "line": [WINNER_COLOUR if point.is_winner else colour for point in rows],
                "width": [4 if point.is_winner else 1 for point in rows],
                **{label: [dict(point.details)[label] for point in rows] for label, _ in rows[0].details},
            }
        )
        style: dict[str, Any] = {"fill_color": colour, "fill_alpha": 0.75, "line_color": "line", "line_width": "width"}
        renderer = plot.scatter("x", "y", source=source, marker="marker", size="size", legend_label=method, **style)
        renderers.append(renderer)
        labels: dict[str, Any] = {"text": "label", "x_offset": 10, "text_font_size": "11px", "text_color": INK}
        names = LabelSet(x="x", y="y", y_offset="offset", source=source, **labels)
        plot.add_layout(names)
        renderer.js_on_change("visible", _follow(names))
    tooltips = [("candidate", "@name"), *((label, f"@{{{label}}}") for label, _ in points[0].details)]
    plot.add_tools(HoverTool(renderers=renderers, tooltips=tooltips))
    plot.legend.click_policy = "hide"
    plot.legend.title = "click to hide or show"
    plot.add_layout(plot.legend[0], "right")
    return plot


def _follow(labels: Any) -> Any:
    """Return a callback that hides the labels of hidden markers."""
    from bokeh.models import CustomJS

    return CustomJS(args={"labels": labels}, code="labels.visible = cb_obj.visible;")


def _diameter(size_mb: float, largest_mb: float) -> float:
    return max(SMALLEST_MARKER, LARGEST_MARKER * math.sqrt(size_mb / largest_mb))
