"""Pieces of work that are tried and timed: a training step, answering images, opening a file, decoding some files."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from winnow.benchmark.timing import time_calls
from winnow.config import Data, Optimiser
from winnow.data.dataset import TRAIN, TRAINING, VALIDATION, ImageSet, load_images
from winnow.data.decoding import Item
from winnow.deploy.runtimes import BenchmarkCase, Predict, open_cell
from winnow.records import write_json

if TYPE_CHECKING:
    from torch import nn

    from winnow.training.loop import Loss

MEASURED_SECONDS, MOST_STEPS = 2.0, 12
"""A training is tried for so long, or so many steps."""
SAMPLED_FILES = (256, 2048)
"""The difference between the two holds no start of processes."""
LEAST_SHARE = 0.3
"""Of the time for a file, with the start of processes in it, that reading and decoding take at least."""
FEW_IMAGES = 128
BYTES_HASHED = 64_000_000


def seconds_per_file(data: Data, scratch: Path, folder: Path) -> tuple[float, float, int]:
    """(seconds to begin, seconds for a file, files) of reading, decoding and writing the user's own files."""
    from winnow.data.gray_range import preprocessing_of
    from winnow.data.sources import open_source
    from winnow.steps.ingest import store

    taken = []
    for wanted in SAMPLED_FILES:
        source = open_source(data, scratch)
        count = min(wanted, source.count)
        # Of a folder every so-manieth file; an archive would have to be read whole for that.
        stride = max(1, source.count // count) if data.source == "folder" else 1
        few = replace(source, count=count, missing=(), items=_every(source.items, stride, count))
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as out, tempfile.TemporaryFile(dir=out) as signatures:
            store(few, data, preprocessing_of(data, few), Path(out), signatures)
        taken.append((count, time.monotonic() - began))
    (few_files, few_seconds), (files, seconds) = taken
    each = seconds / files
    if files > few_files:
        each = max((seconds - few_seconds) / (files - few_files), each * LEAST_SHARE)
    return max(0.0, seconds - files * each), each, source.count


def _every(items: Callable[[], Iterator[Item]], stride: int, count: int) -> Callable[[], Iterator[Item]]:
    return lambda: itertools.islice(items(), 0, stride * count, stride)


def hash_rate() -> float:
    """Bytes a second that DVC reads and hashes of what a step leaves."""
    content = os.urandom(BYTES_HASHED // 8) * 8
    began = time.monotonic()
    hashlib.md5(content, usedforsecurity=False).digest()
    return BYTES_HASHED / (time.monotonic() - began)


def random_images(folder: Path, data: Data, classes: int) -> ImageSet:
    """FEW_IMAGES for training and as many for validation, in files as ingest leaves a data set."""
    folder.mkdir(parents=True)
    rng, count = np.random.default_rng(0), 2 * FEW_IMAGES
    sides = {"images.npy": data.image_size, TRAINING: data.larger_size}
    for name, side in sides.items():
        if side is not None:
            np.save(folder / name, rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(count) % classes)
    np.save(folder / "split.npy", np.where(np.arange(count) < FEW_IMAGES, TRAIN, VALIDATION).astype(np.uint8))
    np.save(folder / "keys.npy", rng.integers(0, 256, (count, 16), dtype=np.uint8))
    write_json(folder / "classes.json", [str(number) for number in range(classes)])
    return load_images(folder)


class Trials:
    """On one machine, with a few random images."""

    def __init__(self, images: ImageSet, folder: Path) -> None:
        self.images, self.folder = images, folder
        self._embedded: float | None = None

    def per_step(self, model: nn.Module, loss: Loss, batch: int, optimiser: Optimiser) -> float:
        """Seconds of a training step, the first ones left out: they make room and choose kernels."""
        from winnow.data.batches import Batches
        from winnow.training.loop import Plan, fit

        train = self.images.indices(TRAIN)
        batches = Batches(self.images.training_NHWC, self.images.labels_N, train, batch, seed=0)
        training = fit(model, batches, loss, Plan(MOST_STEPS, 1, optimiser, seed=0))
        taken: list[float] = []
        with closing(training):
            while len(taken) < MOST_STEPS - 1 and (len(taken) < 3 or sum(taken[1:]) < MEASURED_SECONDS):
                began = time.monotonic()
                next(training)
                taken.append(time.monotonic() - began)
        model.cpu()
        return float(np.median(taken[1:]))

    def embedded(self, model: nn.Module) -> float:
        """Images a second that the network answers in PyTorch, as training looks at them."""
        from winnow.deploy.batch_inference import predict_torch

        if self._embedded is None:
            indices = self.images.indices(VALIDATION)
            predict_torch(model, self.images.images_NHWC, indices[:8])
            began = time.monotonic()
            predict_torch(model, self.images.images_NHWC, indices)
            self._embedded = len(indices) / (time.monotonic() - began)
        return self._embedded

    def opened(self, cell: BenchmarkCase) -> tuple[float, float, Predict]:
        """Seconds to open it, and of a call; and what was opened, which takes memory while it is kept."""
        began = time.monotonic()
        predict = open_cell(self.folder / cell.candidate, cell)
        opening = time.monotonic() - began
        pixels_NHWC = np.ascontiguousarray(
            np.resize(self.images.images_NHWC, (cell.batch, *self.images.images_NHWC.shape[1:]))
        )
        calls = 1 if cell.batch > 1 else 5
        return opening, float(np.median(time_calls(partial(predict, pixels_NHWC), calls, warm_up_ms=0.0))), predict

    def probed(self, model: nn.Module, labels: int, classes: int) -> float:
        """Seconds of the linear probe on so many features."""
        from winnow.models.classifier_head import feature_dim
        from winnow.training.finetuning import fit_probe

        count = min(labels, 20 * FEW_IMAGES)
        rng = np.random.default_rng(0)
        classes_N = np.arange(count) % classes
        features_ND = rng.normal(size=(count, feature_dim(model))) + classes_N[:, None] * 0.01
        began = time.monotonic()
        fit_probe(features_ND, classes_N)
        return (time.monotonic() - began) * labels / max(1, count)
