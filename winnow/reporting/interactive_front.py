"""The candidates as an interactive plot of accuracy over latency, by Bokeh, inside the page and without network.

Pointing at a candidate shows its figures; a click on a method in the legend hides or shows its candidates. The same
numbers give the same bytes: Bokeh's identifiers are replaced by their order.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from winnow.config import ROOT
from winnow.errors import MissingExtra
from winnow.reporting.html import Html, tag
from winnow.reporting.plots import BLUE, INK, LATENCY_LABEL, VERMILLION, TradeOffPoint, front_line, is_wide_range

COLOURS = ("#5b6270", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")
"""One for each method, in the order of their appearance; Okabe and Ito (2008)."""
SMALLEST_MARKER, LARGEST_MARKER = 8.0, 30.0
"""Diameters in pixels; the area grows with the file."""
OFFSETS = (6.0, -18.0)
"""Neighbouring names stand above and below their markers in turn, in pixels."""
TARGET = "interactive-front"


@dataclass(frozen=True)
class FrontPoint:
    """A candidate that was timed, with what a pointer shows."""

    point: TradeOffPoint
    """Its latency is a number."""
    method: str
    is_int8: bool
    details: tuple[tuple[str, str], ...]
    """(label, text) of what a pointer shows."""

    @property
    def position(self) -> tuple[float, float]:
        """Return (ms, percent)."""
        return self.point.latency_ms or math.nan, self.point.accuracy * 100

    @property
    def is_labelled(self) -> bool:
        """Return whether its name stands beside the marker."""
        return self.point.on_front or self.point.name == ROOT


def draw_interactive_front(points: Sequence[FrontPoint], measure: str, fallback: Html) -> Html:
    """Return the plot with its script. `measure`: what their accuracy is; `fallback`: shown without JavaScript.

    Raises MissingExtra without Bokeh.
    """
    try:
        from bokeh.core.types import ID
        from bokeh.embed import json_item
        from bokeh.resources import Resources
    except ModuleNotFoundError as error:
        raise MissingExtra("bokeh", "report") from error
    item = _renumber(json_item(_plot(points, measure), ID(TARGET)), {})
    library = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    content = json.dumps(item).replace("<", "\\u003c")
    script = f"{library}\nBokeh.embed.embed_item({content});"
    return Markup("").join(
        [
            tag("div", more=f'id="{TARGET}"'),
            tag("script", Markup(script.replace("</script", "<\\/script"))),
            tag("noscript", fallback),
        ]
    )


def _renumber(value: Any, order: dict[str, str]) -> Any:
    """Return a part of Bokeh's document with identifiers in the order of their appearance. `order`: those so far."""
    if isinstance(value, list | tuple):
        return [_renumber(part, order) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: order.setdefault(part, f"p{1000 + len(order)}")
        if key in ("id", "root_id") and isinstance(part, str)
        else _renumber(part, order)
        for key, part in value.items()
    }


def _plot(points: Sequence[FrontPoint], measure: str) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool, WheelZoomTool
    from bokeh.models.annotations import LabelSet
    from bokeh.plotting import figure

    latencies = [point.position[0] for point in points]
    is_log = is_wide_range(latencies)
    plot = figure(
        height=430,
        sizing_mode="stretch_width",
        max_width=1150,
        x_axis_type="log" if is_log else "linear",
        x_axis_label=LATENCY_LABEL,
        y_axis_label=f"{measure} on validation, % (up is better)",
        tools="pan,box_zoom,reset,save",
        toolbar_location="above",
    )
    plot.add_tools(WheelZoomTool())
    if is_log:
        plot.xaxis.ticker = [digit * 10**power for power in range(-3, 5) for digit in (1, 2, 5)]
    for axis_range in (plot.x_range, plot.y_range):
        axis_range.update(range_padding=0.12)
    front = front_line([point.position for point in points])
    plot.line(*map(list, zip(*front, strict=True)), color=BLUE, line_width=1.5, line_dash="dashed")
    offsets, largest = _label_offsets(points), max(point.point.size_mb for point in points)
    renderers: list[Any] = []
    for method, colour in zip(dict.fromkeys(point.method for point in points), itertools.cycle(COLOURS), strict=False):
        rows = [point for point in points if point.method == method]
        source = ColumnDataSource(
            _columns(rows, colour, largest) | {"offset": [offsets[row.point.name] for row in rows]}
        )
        style: dict[str, Any] = {"fill_color": colour, "fill_alpha": 0.75, "line_color": "line", "line_width": "width"}
        renderer = plot.scatter("x", "y", source=source, marker="marker", size="size", legend_label=method, **style)
        labels: dict[str, Any] = {"text": "label", "x_offset": 10, "text_font_size": "11px", "text_color": INK}
        names = LabelSet(x="x", y="y", y_offset="offset", source=source, **labels)
        plot.add_layout(names)
        renderer.js_on_change("visible", _follow(names))
        renderers.append(renderer)
    tooltips = [("candidate", "@name"), *((label, f"@{{{label}}}") for label, _ in points[0].details)]
    plot.add_tools(HoverTool(renderers=renderers, tooltips=tooltips))
    plot.legend.click_policy = "hide"
    plot.legend.title = "click to hide or show"
    plot.add_layout(plot.legend[0], "right")
    return plot


def _label_offsets(points: Sequence[FrontPoint]) -> dict[str, float]:
    """Return name -> pixels from the marker up to its label; neighbours in turn, so that they do not overlap."""
    labelled = [point.point.name for point in sorted(points, key=lambda point: point.position) if point.is_labelled]
    return dict.fromkeys((point.point.name for point in points), 0.0) | {
        name: OFFSETS[position % 2] for position, name in enumerate(labelled)
    }


def _columns(rows: Sequence[FrontPoint], colour: str, largest_mb: float) -> dict[str, list[Any]]:
    """Return the columns of Bokeh's table of these candidates. `largest_mb`: size of the largest file of all."""
    return {
        "x": [row.position[0] for row in rows],
        "y": [row.position[1] for row in rows],
        "name": [row.point.name for row in rows],
        "label": [row.point.name if row.is_labelled else "" for row in rows],
        "marker": ["square" if row.is_int8 else "circle" for row in rows],
        "size": [max(SMALLEST_MARKER, LARGEST_MARKER * math.sqrt(row.point.size_mb / largest_mb)) for row in rows],
        "line": [VERMILLION if row.point.highlighted else colour for row in rows],
        "width": [4 if row.point.highlighted else 1 for row in rows],
        **{label: [dict(row.details)[label] for row in rows] for label, _ in rows[0].details},
    }


def _follow(labels: Any) -> Any:
    """Return a callback that hides the labels of hidden markers."""
    from bokeh.models import CustomJS

    return CustomJS(args={"labels": labels}, code="labels.visible = cb_obj.visible;")
