"""`winnow sensitivity`: per-layer sensitivity of a candidate to pruning and int8, as a table, a CSV and a picture."""

from __future__ import annotations

import csv

from rich.table import Table

from tasks.project.paths import ProjectPaths
from winnow.cli.candidate_lookup import candidate_folder
from winnow.cli.progress import show_log
from winnow.cli.terminal import Terminal
from winnow.compression.sensitivity import LayerSensitivity, measure_sensitivities, table_rows
from winnow.config import Config
from winnow.data.dataset import load_images
from winnow.errors import ConfigError
from winnow.models.backbones import WEIGHTS_FILE

WIDTH = 120
"""Minimum width of the table in characters, so that no layer's name is cut."""
console = Terminal()


def run_sensitivity(paths: ProjectPaths, config: Config, name: str, share: float) -> int:
    """Measure every layer of candidate `name`, print the results and write them to files."""
    if not 0 < share < 1:
        raise ConfigError(f"--share {share:g}: a share of the channels is between 0 and 1")
    folder = candidate_folder(paths, name, WEIGHTS_FILE)  # an int8 candidate has no weights file
    show_log()
    results = measure_sensitivities(folder, load_images(paths.artifacts / "data"), share)
    out = paths.state_dir / "sensitivity" / name
    out.mkdir(parents=True, exist_ok=True)
    table = table_rows(results)
    with (out / "layers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    from winnow.reporting.exploration_plots import plot_sensitivity

    (out / "layers.png").write_bytes(plot_sensitivity(table, share))
    _print(results, share)
    console.print(f"In {out.relative_to(paths.root)}: layers.csv, layers.png")
    return 0


def _print(layers: list[LayerSensitivity], share: float) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("MACs", f"{share:.0%} of it pruned", "points lost", "in int8", "points lost"):
        table.add_column(heading, justify="right")
    for layer in layers:
        pruned = ("-", "-") if layer.pruned is None else (_percent(layer.pruned.changed), _points(layer.pruned.points))
        table.add_row(
            layer.layer, _percent(layer.macs), *pruned, _percent(layer.int8.changed), _points(layer.int8.points)
        )
    Terminal(width=max(console.width, WIDTH), soft_wrap=False).print(table)
    console.print("Percentages for pruned and int8: validation images whose prediction changes, without training.")
    if any(layer.pruned_with for layer in layers):
        console.print(
            "Layers whose outputs are added lose the same channels, and share one figure; layers.csv names them."
        )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _points(points: float | None) -> str:
    return "-" if points is None else f"{points:.1f}"
