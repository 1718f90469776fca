"""Classes and probabilities of files, by a model's folder (model.onnx, card.json): streamed, decoded on all cores.

Files are read as in training (winnow.data.dataset) and answered in the runtime and precision that the card names. What
is held at a time is a batch, however many files there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.decoding import Content, Item, chunk_size, decode_all
from winnow.data.file_tree import files_below
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.runtimes import BenchmarkCase, Predict, open_cell
from winnow.errors import DataError
from winnow.evaluation.metrics import softmax
from winnow.hardware import cores
from winnow.records import read_json


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of one file."""

    path: str
    classes: tuple[str, ...]
    """The likeliest first; empty where the file cannot be used."""
    probabilities: tuple[float, ...]
    reason: str = ""
    """Why it cannot be used."""


def files_of(paths: Iterable[Path]) -> Iterator[tuple[str, Content]]:
    """Yield (path, content) of the files that are named and of all images below the folders that are.

    What is not there, and a folder that cannot be read, comes with the reason in place of its content.
    """
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises where a folder above may not be entered
            yield str(path), str(path)
            continue
        unreadable: list[OSError] = []
        yield from ((str(file), str(file)) for file, is_image in files_below(path, unreadable=unreadable) if is_image)
        for error in unreadable:
            yield str(error.filename), ValueError(f"cannot be read ({error.strerror})")


def predict_files(folder: Path, paths: Iterable[Path], top: int = 1) -> tuple[int, Iterator[Prediction]]:
    """How many files there are, and the `top` likeliest classes of each, in their order.

    Raises DataError, ArtifactError, or NotHere where this machine cannot run what the card names.
    """
    listed = list(paths)
    count = sum(1 for _ in files_of(listed))
    card = read_json(folder / "card.json")
    if not 1 <= top <= len(card["classes"]):
        raise DataError(f"the model knows {len(card['classes'])} classes; the {top} likeliest cannot be told")
    return count, _stream(folder, card, listed, count, top)


def _stream(folder: Path, card: dict[str, Any], paths: list[Path], count: int, top: int) -> Iterator[Prediction]:
    batch = chunk_size(count, card["image_size"])  # a larger one would be filled up each time, with work for nothing
    if card["serving"]["runtime"] == "openvino-throughput":
        batch = -(-batch // _threads(card)) * _threads(card)  # of which every stream has its part
    answer, scale = opened(folder, card, batch), card.get("temperature", 1.0)
    classes = card["classes"]
    items = (Item(path, -1, False, content) for path, content in files_of(paths))
    with closing(decode_all(items, count, card["image_size"], preprocessing=Preprocessing.of(card))) as stream:
        for done in stream:
            likeliest = iter(
                _likeliest(answered(answer, done.pixels_KHWC, batch), scale, classes, top) if done.kept else ()
            )
            kept = set(done.kept)
            for position, item in enumerate(done.items):
                if position in kept:
                    yield Prediction(item.name, *next(likeliest))
                else:
                    yield Prediction(item.name, (), (), done.reasons[position])


def _likeliest(
    logits_KC: NDArray[np.float32], temperature: float, classes: list[str], top: int
) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Classes and probabilities of each image, the likeliest first; for all images at once, since there may be many."""
    chances_KC = softmax(logits_KC, temperature)
    order_KT = np.argsort(-chances_KC, axis=1, kind="stable")[:, :top]
    chances_KT = np.take_along_axis(chances_KC, order_KT, axis=1)
    for order, chances in zip(order_KT.tolist(), chances_KT.tolist(), strict=True):
        yield tuple(classes[at] for at in order), tuple(chances)


def opened(folder: Path, card: dict[str, Any], batch: int) -> Predict:
    """The file in the runtime and precision that its card names, for batches of this size."""
    serving = card["serving"]
    return open_cell(
        folder, BenchmarkCase(card["name"], serving["runtime"], serving["precision"], "file", batch, _threads(card))
    )


def _threads(card: dict[str, Any]) -> int:
    """As many as its card names, and this machine has."""
    return int(min(card["serving"]["threads"], cores()))


def answered(answer: Predict, pixels_KHWC: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    """Logits (K, C). OpenVINO's files have a fixed batch: the last one is filled up."""
    parts = []
    for at in range(0, len(pixels_KHWC), batch):
        part = pixels_KHWC[at : at + batch]
        filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)]) if len(part) < batch else part
        parts.append(answer(np.ascontiguousarray(filled))[: len(part)].copy())
    return np.concatenate(parts)
