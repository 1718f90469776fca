from __future__ import annotations

import io
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from winnow.errors import MissingExtra
from winnow.records.benchmark import Attribution
from winnow.records.candidate_file import ReliabilityBin
from winnow.reporting import plots
from winnow.reporting.plot_labels import Label, place_labels

POINTS = [
    plots.TradeOffPoint("dense", 0.62, 0.612, 2.8, False, True, False),
    plots.TradeOffPoint("sparse", 0.621, 0.611, 2.8, False, False, False),
    plots.TradeOffPoint("dense-kd", 0.615, 0.615, 2.8, False, True, False),
    plots.TradeOffPoint("pruned-int8", 0.26, 0.61, 0.4, False, True, True),
    plots.TradeOffPoint("untimed", None, 0.7, 0.4, False, False, False),
]
CASE: dict[str, Any] = {"batch": 1, "on": "ort", "threads": 1, "ends_in": "f32", "ancestor": "dense", "ms": []}
FACTORS = {
    "dense": Attribution(**CASE, runtime=3.0, structure=1.0, precision=1.0, total=3.0),
    "worse": Attribution(**CASE, runtime=0.5, structure=2.0, precision=0.4, total=0.4),
}
BINS = {"dense": [ReliabilityBin(confidence=0.4, accuracy=0.5, count=3)], "other": []}


def all_plots() -> dict[str, bytes]:
    rows = [{"epoch": 1.0}, {"epoch": 2.0, "knn": 0.4}]
    return {
        "pareto": plots.plot_pareto(POINTS),
        "curves": plots.plot_curve(rows, "knn", "kNN, %", 100),
        "arms": plots.plot_arms({"scratch": [0.5, 0.6], "pretrained": [0.7, 0.65]}, 0.6),
        "factors": plots.plot_factors(FACTORS),
        "confusion": plots.plot_confusion([[3, 1], [0, 0]], ["$a_1$", "<b>"], "dense"),
        "reliability": plots.plot_reliability(BINS),
    }


@pytest.mark.thorough
def test_equal_values_give_equal_bytes_without_a_date() -> None:
    first, second = all_plots(), all_plots()
    assert first == second
    for name, plot in first.items():
        if name == "pareto":
            image = Image.open(io.BytesIO(plot))
            assert image.size == (1440, 920)
            assert set(image.info) <= {"dpi"}
        else:
            assert ElementTree.fromstring(plot).tag.endswith("svg")
            assert b"<dc:date>" not in plot
            assert b"matplotlib.org" not in plot


def test_plotting_does_not_change_matplotlib() -> None:
    rc_params = dict(matplotlib.rcParams)
    all_plots()
    assert dict(matplotlib.rcParams) == rc_params
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_user_styles_do_not_change_plots() -> None:
    expected = plots.plot_curve([{"epoch": 1.0, "loss": 2.0}], "loss", "loss")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "black"}):
        assert plots.plot_curve([{"epoch": 1.0, "loss": 2.0}], "loss", "loss") == expected


def test_different_values_give_a_different_plot() -> None:
    changed_points = [*POINTS[:3], plots.TradeOffPoint("pruned-int8", 0.3, 0.61, 0.4, False, True, True)]
    assert plots.plot_pareto(changed_points) != plots.plot_pareto(POINTS)


def test_plots_without_data_are_no_error() -> None:
    assert plots.plot_pareto([POINTS[-1]]).startswith(b"\x89PNG")
    assert plots.plot_curve([{"epoch": 1.0}], "knn", "kNN").startswith(b"<?xml")


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"matplotlib.*winnow-vision\[report\]"):
        plots.plot_arms({"scratch": [0.5]}, None)


def _text_boxes(figure: Figure) -> list[tuple[float, float, float, float]]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [tuple(text.get_window_extent(renderer).extents) for text in figure.axes[0].texts]


def test_labels_do_not_overlap_each_other_markers_or_the_line() -> None:
    figure = Figure(figsize=(7.2, 4.6))
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    positions = [*rng.uniform(0.3, 0.7, (8, 2)).tolist(), [0.5, 0.5], [0.505, 0.5], [0.5, 0.505]]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels = [Label(f"candidate-{index}, 2.79 MB", x, y, 300.0) for index, (x, y) in enumerate(positions)]
    line = [(0.05, 0.9), (0.95, 0.95)]
    place_labels(axes, labels, line)
    boxes = _text_boxes(figure)
    centres = axes.transData.transform(positions)
    radius = (300.0 / np.pi) ** 0.5 * figure.dpi / 72
    frame = axes.get_window_extent().extents
    assert len(boxes) == len(labels)
    for index, (left, bottom, right, top) in enumerate(boxes):
        assert frame[0] <= left
        assert frame[1] <= bottom
        assert right <= frame[2]
        assert top <= frame[3]
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom
        for x, y in centres:
            distance = np.hypot(x - np.clip(x, left, right), y - np.clip(y, bottom, top))
            assert distance >= radius - 4
        for share in np.linspace(0, 1, 200):
            x, y = axes.transData.transform((0.05 + 0.9 * share, 0.9 + 0.05 * share))
            assert not (left < x < right and bottom < y < top)
