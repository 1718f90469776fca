"""`winnow predict`: the promoted model on a person's files, decoded and resized as in training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tasks import registry
from tasks.settings import Places, registered_model_name
from winnow.config import Config
from winnow.data.decoding import read_file
from winnow.data.images import decode
from winnow.errors import DataError
from winnow.evaluation import softmax
from winnow.machine import cores
from winnow.runtimes import Cell, open_cell

BESIDE = 20
"""Columns that probability and gaps take."""


def predict(places: Places, config: Config, paths: list[Path], which: str) -> int:
    """Print class and probability of every file; files that cannot be read are named, and the status is then 2."""
    name = registered_model_name(config)
    version = registry.get(places, name, which)
    folder = registry.fetch(places, name, version)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    pixels, readable, rejected = [], [], []
    for path in paths:
        try:
            pixels.append(decode(read_file(str(path)), card["image_size"])[0])
            readable.append(path)
        except ValueError as error:
            rejected.append(f"{path}: {error}")
    if readable:
        table = Table("image", "class", "probability", box=None, header_style="bold", pad_edge=False)
        for path, row in zip(readable, _probabilities(folder, card, np.stack(pixels)), strict=True):
            best = int(row.argmax())
            table.add_row(str(path), card["classes"][best], f"{row[best]:.3f}")
        # As wide as it takes: the terminal may wrap a long path, but nothing is cut.
        needed = max(len(str(path)) for path in readable) + max(map(len, card["classes"])) + BESIDE
        Console(highlight=False, width=max(Console().width, needed)).print(table)
        print(f"By {version} of {name}", file=sys.stderr)  # noqa: T201
    for line in rejected:
        print(f"winnow: {line}", file=sys.stderr)  # noqa: T201
    if not readable:
        raise DataError("none of these files is an image that can be read")
    return 2 if rejected else 0


def _probabilities(folder: Path, card: dict[str, Any], pixels_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Class probabilities (N, C), in the runtime and with the settings that the model was fastest with."""
    serving = card["serving"]
    cell = Cell(
        card["name"],
        serving["runtime"],
        serving["precision"],
        "file",
        batch=1,
        threads=min(serving["threads"], cores()),
    )
    answer = open_cell(folder, cell)
    return softmax(np.concatenate([answer(pixels_NHWC[at : at + 1]) for at in range(len(pixels_NHWC))]))
