"""`winnow predict`: the promoted model on a person's files, decoded and resized as in training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tasks.registry import fetch_model
from tasks.settings import Places, registered_model_name
from winnow.config import Config
from winnow.data.images import decode
from winnow.errors import DataError


def predict(places: Places, config: Config, paths: list[Path], which: str) -> int:
    """Print class and probability of every file; files that cannot be read are named, and the status is then 2."""
    folder = fetch_model(places, registered_model_name(config), which)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    pixels, readable, rejected = [], [], []
    for path in paths:
        try:
            pixels.append(decode(path.read_bytes(), card["image_size"])[0])
            readable.append(path)
        except (OSError, ValueError) as error:
            rejected.append(f"{path}: {error}")
    if readable:
        table = Table("image", "class", "probability", box=None, header_style="bold")
        for path, row in zip(readable, _probabilities(folder, card, np.stack(pixels)), strict=True):
            best = int(row.argmax())
            table.add_row(str(path), card["classes"][best], f"{row[best]:.3f}")
        Console(highlight=False, soft_wrap=True).print(table)
    for line in rejected:
        print(f"winnow: {line}", file=sys.stderr)  # noqa: T201
    if not readable:
        raise DataError("none of these files is an image that can be read")
    return 2 if rejected else 0


def _probabilities(folder: Path, card: dict[str, object], pixels_NHWC: np.ndarray) -> np.ndarray:
    """Softmax of the model's logits, in the runtime and with the settings it was fastest with."""
    from winnow.runtimes import open_file

    serving = card["serving"]
    assert isinstance(serving, dict)
    session = open_file(folder / "model.onnx", serving["runtime"], serving["precision"], serving["threads"])
    parts = [session(pixels_NHWC[start : start + 64]) for start in range(0, len(pixels_NHWC), 64)]
    logits = np.concatenate(parts).astype(np.float64)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return probabilities
