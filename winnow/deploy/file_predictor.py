"""Predict the classes of image files with a model's folder (model.onnx, card.json), as a stream, on all cores.

Files are decoded as in training (winnow.data.dataset) and predicted in the runtime and precision that the card names.
Memory holds one batch, however many files there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.decoding import chunk_size, decode_all
from winnow.data.file_tree import walk_files
from winnow.data.image_items import Content, Item
from winnow.data.preprocessing import Preprocessing
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.runtime_properties import Predict
from winnow.errors import DataError
from winnow.evaluation.metrics import softmax
from winnow.hardware import cores
from winnow.records import DeploymentCard
from winnow.records.benchmark import BenchmarkCase


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one file."""

    path: str
    classes: tuple[str, ...]
    """The most probable first; empty where the file cannot be used."""
    probabilities: tuple[float, ...]
    reason: str = ""
    """The reason why the file cannot be used, or ""."""


def list_files(paths: Iterable[Path]) -> Iterator[tuple[str, Content]]:
    """Yield (path, content) of the given files and of all images below the given folders.

    A missing file, or a folder that cannot be read, has the reason in place of its content.
    """
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises where a parent folder may not be entered
            yield str(path), str(path)
            continue
        unreadable: list[OSError] = []
        yield from ((str(file), str(file)) for file, is_image in walk_files(path, unreadable=unreadable) if is_image)
        for error in unreadable:
            yield str(error.filename), ValueError(f"cannot be read ({error.strerror})")


def predict_files(folder: Path, paths: Iterable[Path], top: int = 1) -> tuple[int, Iterator[Prediction]]:
    """Return the number of files, and the `top` most probable classes of each file in order.

    Raises DataError, ArtifactError, or RuntimeUnavailable where this machine cannot run the card's runtime.
    """
    path_list = list(paths)
    count = sum(1 for _ in list_files(path_list))
    card = DeploymentCard.read(folder)
    if not 1 <= top <= len(card.classes):
        raise DataError(f"the model has {len(card.classes)} classes; it cannot give the top {top}")
    return count, _stream(folder, card, path_list, count, top)


def _stream(folder: Path, card: DeploymentCard, paths: list[Path], count: int, top: int) -> Iterator[Prediction]:
    batch = chunk_size(count, card.image_size)  # a larger batch would always be padded
    if card.serving.runtime == "openvino-throughput":
        batch = -(-batch // _threads(card)) * _threads(card)  # each stream needs an equal share
    predict = open_card_runtime(folder, card, batch)
    no_logits = np.zeros((0, len(card.classes)), dtype=np.float32)
    items = (Item(path, -1, False, content) for path, content in list_files(paths))
    with closing(decode_all(items, count, card.image_size, preprocessing=Preprocessing.of(card))) as chunks:
        for chunk in chunks:
            logits_KC = predict_batches(predict, chunk.pixels_KHWC, batch) if chunk.usable else no_logits
            top_classes = _top_classes(logits_KC, card.temperature, card.classes, top)
            usable = set(chunk.usable)
            for position, item in enumerate(chunk.items):
                if position in usable:
                    yield Prediction(item.name, *next(top_classes))
                else:
                    yield Prediction(item.name, (), (), chunk.reasons[position])


def _top_classes(
    logits_KC: NDArray[np.float32], temperature: float, classes: list[str], top: int
) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Yield the most probable classes of each image and their probabilities, computed for the whole chunk at once."""
    probabilities_KC = softmax(logits_KC, temperature)
    order_KT = np.argsort(-probabilities_KC, axis=1, kind="stable")[:, :top]
    probabilities_KT = np.take_along_axis(probabilities_KC, order_KT, axis=1)
    for order, probabilities in zip(order_KT.tolist(), probabilities_KT.tolist(), strict=True):
        yield tuple(classes[index] for index in order), tuple(probabilities)


def open_card_runtime(folder: Path, card: DeploymentCard, batch: int) -> Predict:
    """Open the file in the runtime and precision that its card names, for batches of this size."""
    serving = card.serving
    case = BenchmarkCase(card.name, serving.runtime, serving.precision, "file", batch, _threads(card))
    return open_case(folder, case)


def _threads(card: DeploymentCard) -> int:
    """Return the card's number of threads, at most this machine's cores."""
    return min(card.serving.threads, cores())


def predict_batches(predict: Predict, pixels_KHWC: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    """Return the logits (K, C). The last batch is padded, since OpenVINO compiles a file for a fixed batch."""
    logits = []
    for start in range(0, len(pixels_KHWC), batch):
        pixels = pixels_KHWC[start : start + batch]
        count = len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], batch - count, axis=0)]) if count < batch else pixels
        logits.append(predict(np.ascontiguousarray(padded))[:count].copy())
    return np.concatenate(logits)
