"""`winnow sensitivity`: which layer of a candidate bears pruning and int8, as a table, a CSV and a picture."""

from __future__ import annotations

import csv

from rich.table import Table

from tasks.project.paths import ProjectPaths
from winnow.cli.candidate_lookup import folder_of
from winnow.cli.progress import tell_progress
from winnow.cli.terminal import Terminal
from winnow.compression.sensitivity import Sensitivity, rows, sensitivities
from winnow.config import Config
from winnow.data.dataset import load_images
from winnow.errors import ConfigError
from winnow.models.backbones import WEIGHTS

WIDTH = 120
"""Of the table at least, in characters: a layer's name is not cut."""
console = Terminal()


def show(places: ProjectPaths, config: Config, name: str, share: float) -> int:
    """Try every layer of candidate `name`, print and keep what it costs."""
    if not 0 < share < 1:
        raise ConfigError(f"--share {share:g}: a share of the channels lies between 0 and 1")
    folder = folder_of(places, name, WEIGHTS)  # an int8 candidate is a file alone
    tell_progress()
    found = sensitivities(folder, load_images(places.artifacts / "data"), share)
    out = places.state_dir / "sensitivity" / name
    out.mkdir(parents=True, exist_ok=True)
    table = rows(found)
    with (out / "layers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    from winnow.reporting.exploration_plots import sensitivity

    (out / "layers.png").write_bytes(sensitivity(table, share))
    _print(found, share)
    console.print(f"In {out.relative_to(places.root)}: layers.csv, layers.png")
    return 0


def _print(found: list[Sensitivity], share: float) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("MACs", f"{share:.0%} of it pruned", "points lost", "in int8", "points lost"):
        table.add_column(heading, justify="right")
    for each in found:
        pruned = ("-", "-") if each.pruned is None else (_percent(each.pruned.changed), _points(each.pruned.points))
        table.add_row(each.layer, _percent(each.macs), *pruned, _percent(each.int8.changed), _points(each.int8.points))
    Terminal(width=max(console.width, WIDTH), soft_wrap=False).print(table)
    console.print("Percentages beside pruned and int8: validation images that get another answer, nothing trained.")
    if any(each.together for each in found):
        console.print(
            "Layers whose outputs are added lose the same channels, and share one figure; layers.csv names them."
        )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _points(points: float | None) -> str:
    return "-" if points is None else f"{points:.1f}"
