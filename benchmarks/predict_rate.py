"""Measure images per second of `winnow predict` on a folder, beside decoding alone and the model alone.

    winnow export DIR && python -m benchmarks.predict_rate DIR IMAGES

DIR holds an exported model, IMAGES image files at any depth. "decoding, then the model" is the rate of one after the
other, each with all cores: 1 / (1 / decoding + 1 / model). Rounds are interleaved. No rate includes the start-up
(imports, opening the model, the first decoders), which takes seconds whatever the size of the folder.
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

from benchmarks.chain import markdown_table, write_results
from winnow.data.decoding import decode_all
from winnow.data.image_items import Item
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.file_predictor import list_files, open_card_runtime, predict_batches, predict_files
from winnow.records import DeploymentCard

NAME, ROUNDS, BATCH = "predict_rate", 5, 64


def steady_rate(counts: Iterator[int], skipped: int) -> float:
    """Return images per second, timed from the moment that `skipped` images are done. `counts`: images of each part."""
    done, start_time = 0, 0.0
    for count in counts:
        done += count
        if not start_time and done >= skipped:
            start_time, start_count = time.monotonic(), done
    return (done - start_count) / (time.monotonic() - start_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--limit", type=int, default=20_000, help="files at most")
    args = parser.parse_args()
    card = DeploymentCard.read(args.export)
    files = [Path(file) for file, _ in islice(list_files([args.images]), args.limit)]

    def predict() -> Iterator[int]:
        _, predictions = predict_files(args.export, files)
        return (1 for _ in predictions)

    def decode() -> Iterator[int]:
        items = (Item(str(file), -1, False, str(file)) for file in files)
        with closing(decode_all(items, len(files), card.image_size, preprocessing=Preprocessing.of(card))) as stream:
            for decoded in stream:
                yield len(decoded.items)

    def run_model() -> Iterator[int]:
        runtime = open_card_runtime(args.export, card, BATCH)
        side = card.image_size
        pixels_NHWC = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
        for _ in range(max(2, len(files) // BATCH)):
            predict_batches(runtime, pixels_NHWC, BATCH)
            yield BATCH

    arms: dict[str, Callable[[], Iterator[int]]]
    arms = {"winnow predict": predict, "decoding": decode, "the model": run_model}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            rates[name].append(steady_rate(arm(), len(files) // 5))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    serial = 1 / (1 / medians["decoding"] + 1 / medians["the model"])
    rows = [{"": name, "images/s": f"{value:,.0f}"} for name, value in medians.items()]
    rows.append({"": "decoding, then the model", "images/s": f"{serial:,.0f}"})
    rows.append({"": "winnow predict as a share of that", "images/s": f"{medians['winnow predict'] / serial:.2f}"})
    conditions = (
        f"{card.name} at {card.image_size} pixels on {card.serving.runtime} {card.serving.precision}, {len(files):,} "
        f"files, medians of {ROUNDS} interleaved rounds."
    )
    write_results(f"{NAME}_{card.image_size}", conditions, {"rates": rates}, markdown_table(rows))


if __name__ == "__main__":
    main()
