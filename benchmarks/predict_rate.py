"""`winnow predict` on a folder: images a second, beside decoding alone and the model alone on the same cores.

    winnow export DIR && python -m benchmarks.predict_rate DIR IMAGES

DIR holds an exported model, IMAGES image files at any depth. "Alone" is what both would take one after the other, each
with all cores: 1 / (1 / decoding + 1 / model). Rounds are interleaved; start-up (imports, opening the model, the first
decoders) is in none of the three rates, since it is over in seconds and folders are not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.chain import leave, markdown
from winnow.data.decoding import Item, decode_all
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.file_predictor import list_files, open_card_runtime, predict_batches, predict_files
from winnow.records import DeploymentCard

NAME, ROUNDS, BATCH = "predict_rate", 5, 64


def rate(units: Iterator[int], skipped: int) -> float:
    """Images a second, from the moment that `skipped` are done."""
    done, began = 0, 0.0
    for count in units:
        done += count
        if not began and done >= skipped:
            began, start = time.monotonic(), done
    return (done - start) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--limit", type=int, default=20_000, help="files at most")
    options = parser.parse_args()
    card = DeploymentCard.read(options.export)
    files = [Path(file) for file, _ in islice(list_files([options.images]), options.limit)]
    skipped = len(files) // 5

    def whole() -> Iterator[int]:
        _, predictions = predict_files(options.export, files)
        return (1 for _ in predictions)

    def decoding() -> Iterator[int]:
        items = (Item(str(file), -1, False, str(file)) for file in files)
        with closing(decode_all(items, len(files), card.image_size, preprocessing=Preprocessing.of(card))) as stream:
            for done in stream:
                yield len(done.items)

    def model() -> Iterator[int]:
        answer = open_card_runtime(options.export, card, BATCH)
        side = card.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
        for _ in range(max(2, len(files) // BATCH)):
            predict_batches(answer, pixels, BATCH)
            yield BATCH

    kinds: dict[str, Callable[[], Iterator[int]]] = {"winnow predict": whole, "decoding": decoding, "the model": model}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, start in kinds.items():
            rates[kind].append(rate(start(), skipped))
    median = {kind: statistics.median(found) for kind, found in rates.items()}
    alone = 1 / (1 / median["decoding"] + 1 / median["the model"])
    rows = [{"": kind, "images/s": f"{value:,.0f}"} for kind, value in median.items()]
    rows.append({"": "decoding, then the model", "images/s": f"{alone:,.0f}"})
    rows.append({"": "winnow predict as a share of that", "images/s": f"{median['winnow predict'] / alone:.2f}"})
    note = (
        f"{card.name} at {card.image_size} pixels on {card.serving.runtime} {card.serving.precision}, {len(files):,} "
        f"files, medians of {ROUNDS} interleaved rounds."
    )
    leave(f"{NAME}_{card.image_size}", note, {"rates": rates}, markdown(rows))


if __name__ == "__main__":
    main()
