"""The plots of a run, as bytes: a PNG of the trade-off (MLflow shows it, too), and SVGs for the page alone.

They are drawn by matplotlib's figure objects, without pyplot and without changing its global state; the style holds for
one picture. Colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish, and no meaning
depends on colour alone. The same numbers give the same bytes: no date, no software's name, no random identifiers.

The numbers are computed elsewhere; nothing here reads a record.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from winnow.errors import MissingExtra
from winnow.evaluation.pareto import pareto_front
from winnow.records.benchmark import Attribution
from winnow.records.candidate_file import ReliabilityBin
from winnow.reporting.plot_labels import Label, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2430", "#6b7280", "#d9dce3"
BLUE, ORANGE, GREEN, VERMILLION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
FACTORS = {"runtime": BLUE, "structure": ORANGE, "precision": GREEN}
"""One colour per factor of winnow.benchmark.speedups.attribute_speedup."""
LATENCY_LABEL = "p50 latency of one image on the best runtime, ms (left is better)"
LARGEST_MARKER = 700.0
"""Area of the largest file's marker, points squared."""
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.hashsalt": "winnow",
    # A class may be called $5 or a_b.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class TradeOffPoint:
    """One candidate in the trade-off plot; without a latency it is not drawn."""

    name: str
    latency_ms: float | None
    accuracy: float
    size_mb: float
    measures_agreement: bool
    """True where `accuracy` is agreement with dense, because no image has a label."""
    on_front: bool
    highlighted: bool


def is_wide_range(values: Sequence[float]) -> bool:
    """Return whether an axis of these values should be logarithmic."""
    return len(values) > 0 and max(values) > 4 * min(values)


def front_line(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those of (latency, accuracy) that no other beats in both, from left to right."""
    line = sorted(points)
    return [line[index] for index in pareto_front([(latency, -accuracy) for latency, accuracy in line])]


def accuracy_measure(points: Sequence[TradeOffPoint]) -> str:
    """Return what `accuracy` of these points is."""
    return "agreement with dense" if any(point.measures_agreement for point in points) else "top-1 accuracy"


def plot_pareto(points: Sequence[TradeOffPoint]) -> bytes:
    """Return a PNG: accuracy over latency, file size as marker area, the front as a line, the winner in orange."""
    drawn = [point for point in points if point.latency_ms is not None]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        x = [point.latency_ms or math.nan for point in drawn]
        y = [point.accuracy * 100 for point in drawn]
        largest = max((point.size_mb for point in drawn), default=1.0)
        areas = [LARGEST_MARKER * point.size_mb / largest for point in drawn]
        if is_wide_range(x):
            axes.set_xscale("log")
        axes.margins(0.16, 0.16)
        front = front_line(list(zip(x, y, strict=True)))
        axes.plot(*np.array(front).reshape(-1, 2).T, color=BLUE, linewidth=1.2, zorder=2)
        for point, a, b, area in zip(drawn, x, y, areas, strict=True):
            colour = VERMILLION if point.highlighted else BLUE if point.on_front else MUTED
            face = colour if point.on_front else "none"
            axes.scatter(a, b, s=area, facecolor=face, edgecolor=colour, linewidth=1.4, zorder=3)
        axes.set_xlabel(LATENCY_LABEL)
        axes.set_ylabel(f"{accuracy_measure(drawn)} on validation, % (up is better)")
        plain_ticks(axes)
        labels = [
            Label(f"{point.name}, {point.size_mb:.2f} MB", a, b, area, point.highlighted)
            for point, a, b, area in zip(drawn, x, y, areas, strict=True)
        ]
        place_labels(axes, labels, front)

    return render(paint, (7.2, 4.6), "png")


def plot_curve(
    rows: Sequence[Mapping[str, float]], column: str, label: str, scale: float = 1.0, least_span: float = 0.0
) -> bytes:
    """Return an SVG: one column of a training's curves over epochs; rows without the column are skipped.

    The axis spans `least_span` at least, so that a flat curve looks flat.
    """
    shown = [row for row in rows if column in row]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        x, y = [row["epoch"] for row in shown], [row[column] * scale for row in shown]
        axes.plot(x, y, color=BLUE, linewidth=1.6, marker="o" if len(x) <= 30 else None, markersize=3.5)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if x:
            axes.annotate(f"{y[-1]:.3g}", (x[-1], y[-1]), (4, 4), textcoords="offset points", color=BLUE)
            axes.set_xlim(0, max(x) * 1.12)
            missing = least_span - (max(y) - min(y))
            if missing > 0:
                axes.set_ylim(min(y) - missing / 2, max(y) + missing / 2)

    return render(paint, (4.4, 3.0))


def plot_arms(top1: Mapping[str, Sequence[float]], probe: float | None) -> bytes:
    """Return an SVG: validation top-1 (fractions) of every arm, a line per label seed, and the linear probe."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(top1)
        for seed in range(max((len(values) for values in top1.values()), default=0)):
            pairs = [(index, top1[name][seed] * 100) for index, name in enumerate(names) if seed < len(top1[name])]
            axes.plot(*np.array(pairs).T, color=BLUE, linewidth=1.2, marker="o", markersize=5, alpha=0.8)
        if probe is not None:
            axes.axhline(probe * 100, color=ORANGE, linestyle="--", linewidth=1.2)
            axes.annotate("linear probe", (-0.3, probe * 100), (0, 3), textcoords="offset points", color=INK)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.35, len(names) - 0.65)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("top-1 on validation, %")

    return render(paint, (4.4, 3.0))


def plot_factors(rows: Mapping[str, Attribution]) -> bytes:
    """Return an SVG: each candidate's speed-up over eager f32 as a waterfall of factors on a log axis; slowdowns go
    left.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for index, row in enumerate(rows.values()):
            product = 1.0
            for step, (name, colour) in enumerate(FACTORS.items()):
                start, product = product, product * getattr(row, name)
                low, high = sorted((start, product))
                y = index + 0.25 * (step - 1)
                axes.barh(y, high - low, 0.22, low, color=colour, label=name if index == 0 else None)
                axes.plot([product, product], [y - 0.11, y + 0.36 * (step < 2)], color=MUTED, linewidth=0.7)
            end = (max(start, product, 1.0), index + 0.25)
            axes.annotate(f"{row.total:.1f} ×", end, (5, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.axvline(1.0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(0.12, 0.02)
        axes.set_xlabel("times as fast as dense in PyTorch eager f32 (log scale)")
        plain_ticks(axes)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handlelength=1.2)

    return render(paint, (5.6, 0.9 + 0.46 * len(rows)))


def plot_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> bytes:
    """Return an SVG: rows are the true classes, row shares in shades of blue; numbers and names where they fit."""
    table = np.array(counts, dtype=float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        # A power below 1 darkens small shares, so that rare confusions stay visible.
        axes.imshow(shares**0.6, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        axes.set_title(title)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("truth")
        if len(classes) <= 40:
            axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
            axes.set_yticks(range(len(classes)), classes, fontsize=8)
        if len(classes) <= 12:
            for (row, column), share in np.ndenumerate(shares):
                colour = "white" if share > 0.45 else INK
                text = f"{share * 100:.0f}" if share >= 0.005 else ""
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)

    return render(paint, (4.4, 4.2))


def plot_reliability(bins: Mapping[str, Sequence[ReliabilityBin]]) -> bytes:
    """Return an SVG: accuracy over confidence for each candidate; calibrated confidence is on the diagonal."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=":")
        for (name, rows), colour, marker in zip(bins.items(), (INK, VERMILLION), ("s", "o"), strict=False):
            x, y = [row.confidence * 100 for row in rows], [row.accuracy * 100 for row in rows]
            largest = max((row.count for row in rows), default=1)
            areas = [12 + 110 * row.count / largest for row in rows]
            axes.plot(x, y, color=colour, linewidth=1.0)
            axes.scatter(x, y, s=areas, color=colour, alpha=0.7, marker=marker, linewidth=0, label=name)
        axes.set(xlim=(0, 103), ylim=(0, 103), xlabel="confidence, %", ylabel="accuracy, %")
        legend = axes.legend(loc="upper left", markerscale=0.7)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)

    return render(paint, (4.4, 3.8))


def plain_ticks(axes: Axes) -> None:
    """Label a log axis with 0.5, 1, 2 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if axes.get_xscale() == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def render(paint: Callable[[Figure], None], inches: tuple[float, float], kind: Literal["png", "svg"] = "svg") -> bytes:
    """Return a figure that `paint` draws, in our style, as bytes. Raises MissingExtra without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("matplotlib", "report") from error
    buffer = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, "backend": "agg", **STYLE}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Characters that the font lacks become boxes here; the page's tables show them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=inches, layout="constrained", dpi=200 if kind == "png" else 100)
        paint(figure)
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
