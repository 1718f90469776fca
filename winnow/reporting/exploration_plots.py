"""The plots of a search, a sweep and a sensitivity analysis. All are PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.records.benchmark import BenchmarkRow
from winnow.reporting.plots import BLUE, GREEN, MUTED, ORANGE, VERMILLION, plain_ticks, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sensitivity(rows: Sequence[Mapping[str, Any]], share: float) -> bytes:
    """Plot the share of changed predictions with one layer at a time pruned or rounded to int8, in layer order."""
    kinds = {
        f"{share:.0%} of its channels pruned": ("pruned_changed_percent", ORANGE, "o"),
        "rounded to int8": ("int8_changed_percent", BLUE, "s"),
    }

    def paint(fig: Figure) -> None:
        axes = fig.subplots()
        positions = np.arange(len(rows))
        for label, (key, colour, marker) in kinds.items():
            values = [row[key] for row in rows]
            known = [position for position, value in enumerate(values) if value is not None]
            shown = [values[position] for position in known]
            axes.plot(shown, known, marker, color=colour, label=label, markersize=5, clip_on=False, zorder=3)
        axes.set_yticks(positions, [str(row["layer"]) for row in rows], fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("validation images whose prediction changes, %")
        axes.set_xlim(left=0)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return render(paint, (7.0, 1.2 + 0.17 * len(rows)), "png")


def plot_sweep(rows: Sequence[BenchmarkRow], title: str) -> bytes:
    """Plot images/s and ms per call over the batch; a colour for each runtime and precision, a dash for the threads."""
    kinds = list(dict.fromkeys((row.runtime, row.precision) for row in rows))
    threads = sorted({row.threads for row in rows}, reverse=True)

    def paint(fig: Figure) -> None:
        axes = fig.subplots(1, 2)
        for kind, colour in zip(kinds, cycle((BLUE, ORANGE, GREEN, VERMILLION, MUTED)), strict=False):
            for count, dash in zip(threads, cycle(("solid", "dashed", "dotted", "dashdot")), strict=False):
                series = [row for row in rows if (row.runtime, row.precision, row.threads) == (*kind, count)]
                if not series:
                    continue
                batches = [row.batch for row in series]
                label = f"{' '.join(kind)}, {count} thread{'s' if count > 1 else ''}"
                style = {"color": colour, "linestyle": dash, "marker": "o", "markersize": 3, "linewidth": 1.2}
                axes[0].plot(batches, [row.images_per_s for row in series], label=label, **style)
                axes[1].plot(batches, [row.p50_ms for row in series], **style)
        for axis, label in zip(axes, ("images/s (higher is better)", "p50 of a call, ms"), strict=True):
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted({row.batch for row in rows}))
            axis.xaxis.set_major_formatter("{x:.0f}")
            axis.set_xlabel("batch")
            axis.set_ylabel(label)
        axes[0].set_ylim(bottom=0)
        axes[1].set_yscale("log")
        axes[1].yaxis.set_major_formatter("{x:g}")
        fig.suptitle(title, fontsize=10)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)

    return render(paint, (9.0, 4.6), "png")


@dataclass(frozen=True)
class SearchPoint:
    """A finished trial of a search."""

    number: int
    cost: float
    drop: float
    ends: tuple[float, float] | None = None
    """The ends of the interval of `drop`, where the trial is on the front or chosen."""
    marks: tuple[str, ...] = ()
    """Of "chosen", "not confirmed" and "knee"."""
    on_front: bool = False


def plot_search(points: Sequence[SearchPoint], dense_cost: float, allowed: float, cost_label: str) -> bytes:
    """Plot points of accuracy lost over cost; the front as a line with intervals, the allowance and dense as dashes."""

    def paint(fig: Figure) -> None:
        axes = fig.subplots()
        line = sorted((point.cost, point.drop) for point in points if point.on_front)
        axes.plot(*np.array(line).reshape(-1, 2).T, color=BLUE, linewidth=1.2, zorder=2)
        for point in points:
            colour = VERMILLION if "chosen" in point.marks else BLUE if point.ends else MUTED
            face = colour if point.ends else "none"
            axes.scatter(point.cost, point.drop, s=42, facecolor=face, edgecolor=colour, linewidth=1.3, zorder=3)
            if point.ends:
                axes.plot([point.cost] * 2, point.ends, color=colour, linewidth=0.8, alpha=0.7, zorder=2)
            if point.on_front or point.marks:
                position, name = (point.cost, point.drop), ", ".join((str(point.number), *point.marks))
                axes.annotate(name, position, (6, 5), textcoords="offset points", fontsize=8, color=colour)
        axes.axhline(allowed, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.axvline(dense_cost, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        costs = [point.cost for point in points] + [dense_cost]
        if max(costs) > 4 * min(costs):
            axes.set_xscale("log")
            plain_ticks(axes)
        axes.annotate(
            "allowance", (0.01, allowed), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=8
        )
        axes.annotate(
            "dense ", (dense_cost, 0.01), xycoords=("data", "axes fraction"), ha="right", va="bottom", fontsize=8
        )
        axes.margins(0.08, 0.08)
        axes.set_xlabel(cost_label)
        axes.set_ylabel("points of top-1 lost (lower is better)")

    return render(paint, (7.2, 4.4), "png")
