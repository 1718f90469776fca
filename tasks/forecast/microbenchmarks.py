"""Small timed pieces of work: decode files, run training steps, predict images, open an ONNX session, fit a probe."""

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

import numpy as np
from torch import nn

from winnow.benchmark.timing import time_calls
from winnow.config import Data, Optimiser
from winnow.data.batches import Batches
from winnow.data.dataset import TRAIN, TRAINING_FILE, VALIDATION, ImageSet, load_images
from winnow.data.gray_range import resolve_preprocessing
from winnow.data.image_items import Item
from winnow.data.sources import open_source
from winnow.deploy.batch_inference import predict_torch
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.runtime_properties import Predict
from winnow.models.classifier_head import feature_dim
from winnow.records import write_json
from winnow.records.benchmark import BenchmarkCase
from winnow.steps.image_storage import store_images
from winnow.training.linear_probe import fit_probe
from winnow.training.loop import Loss, TrainingPlan, fit

MEASURED_SECONDS, MOST_STEPS = 2.0, 12
"""Limits on a timed training: seconds and steps."""
SAMPLED_FILES = (256, 2048)
"""Two sample sizes: the difference of their times does not contain the start of the worker processes."""
LEAST_SHARE = 0.3
"""Lower bound on the share of a file's time, process start included, that reading and decoding take."""
FEW_IMAGES = 128
BYTES_HASHED = 64_000_000


def seconds_per_file(data: Data, scratch: Path, folder: Path) -> tuple[float, float, int]:
    """Time reading, decoding and writing the user's files; return (start-up seconds, seconds per file, files)."""
    timings = []
    for limit in SAMPLED_FILES:
        source = open_source(data, scratch)
        count = min(limit, source.count)
        # Sample a folder evenly. An archive would have to be read whole for that, so take its first files.
        stride = max(1, source.count // count) if data.source == "folder" else 1
        sample = replace(source, count=count, missing=(), items=_every(source.items, stride, count))
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as out, tempfile.TemporaryFile(dir=out) as signatures:
            store_images(sample, data, resolve_preprocessing(data, sample), Path(out), signatures)
        timings.append((count, time.monotonic() - started))
    (first_files, first_seconds), (files, seconds) = timings
    per_file = seconds / files
    if files > first_files:
        per_file = max((seconds - first_seconds) / (files - first_files), per_file * LEAST_SHARE)
    return max(0.0, seconds - files * per_file), per_file, source.count


def _every(items: Callable[[], Iterator[Item]], stride: int, count: int) -> Callable[[], Iterator[Item]]:
    return lambda: itertools.islice(items(), 0, stride * count, stride)


def hash_rate() -> float:
    """Return the MD5 throughput in bytes/s, with which DVC hashes the outputs of a step."""
    content = os.urandom(BYTES_HASHED // 8) * 8
    started = time.monotonic()
    hashlib.md5(content, usedforsecurity=False).digest()
    return BYTES_HASHED / (time.monotonic() - started)


def random_images(folder: Path, data: Data, classes: int) -> ImageSet:
    """Write a data set of random images like ingest does: FEW_IMAGES for training and as many for validation."""
    folder.mkdir(parents=True)
    rng, count = np.random.default_rng(0), 2 * FEW_IMAGES
    sides = {"images.npy": data.image_size, TRAINING_FILE: data.larger_size}
    for name, side in sides.items():
        if side is not None:
            np.save(folder / name, rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(count) % classes)
    np.save(folder / "split.npy", np.where(np.arange(count) < FEW_IMAGES, TRAIN, VALIDATION).astype(np.uint8))
    np.save(folder / "keys.npy", rng.integers(0, 256, (count, 16), dtype=np.uint8))
    write_json(folder / "classes.json", [str(number) for number in range(classes)])
    return load_images(folder)


class Microbenchmarks:
    """Timed pieces of training and inference on a few random images."""

    def __init__(self, images: ImageSet, folder: Path) -> None:
        self.images, self.folder = images, folder
        self._images_per_second: float | None = None

    def seconds_per_step(self, model: nn.Module, loss: Loss, batch: int, optimiser: Optimiser) -> float:
        """Return the median seconds of a training step, without the first, which allocates memory and picks kernels."""
        train = self.images.indices(TRAIN)
        batches = Batches(self.images.training_NHWC, self.images.labels_N, train, batch, seed=0)
        training = fit(model, batches, loss, TrainingPlan(MOST_STEPS, 1, optimiser, seed=0))
        seconds: list[float] = []
        with closing(training):
            while len(seconds) < MOST_STEPS - 1 and (len(seconds) < 3 or sum(seconds[1:]) < MEASURED_SECONDS):
                started = time.monotonic()
                next(training)
                seconds.append(time.monotonic() - started)
        model.cpu()
        return float(np.median(seconds[1:]))

    def images_per_second(self, model: nn.Module) -> float:
        """Return the images/s of inference in PyTorch, as used during training. Measured once, for any network."""
        if self._images_per_second is None:
            indices = self.images.indices(VALIDATION)
            predict_torch(model, self.images.images_NHWC, indices[:8])
            started = time.monotonic()
            predict_torch(model, self.images.images_NHWC, indices)
            self._images_per_second = len(indices) / (time.monotonic() - started)
        return self._images_per_second

    def time_session(self, case: BenchmarkCase) -> tuple[float, float, Predict]:
        """Open the runtime of a case; return (seconds to open, seconds per call, the open predictor).

        The predictor holds its memory until the caller drops it.
        """
        started = time.monotonic()
        predict = open_case(self.folder / case.candidate, case)
        opening_seconds = time.monotonic() - started
        images_NHWC = self.images.images_NHWC
        pixels_NHWC = np.ascontiguousarray(np.resize(images_NHWC, (case.batch, *images_NHWC.shape[1:])))
        calls = 1 if case.batch > 1 else 5
        call_seconds = time_calls(partial(predict, pixels_NHWC), calls, warm_up_ms=0.0, timed_ms=0.0)
        return opening_seconds, float(np.median(call_seconds)), predict

    def probe_seconds(self, model: nn.Module, labels: int, classes: int) -> float:
        """Return the seconds to fit the linear probe on `labels` feature vectors."""
        count = min(labels, 20 * FEW_IMAGES)
        rng = np.random.default_rng(0)
        classes_N = np.arange(count) % classes
        features_ND = rng.normal(size=(count, feature_dim(model))) + classes_N[:, None] * 0.01
        started = time.monotonic()
        fit_probe(features_ND, classes_N)
        return (time.monotonic() - started) * labels / max(1, count)
