"""What a file costs: a call's time, an image's, bytes or energy, measured beside dense by the objective that is set."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.energy import joules
from winnow.benchmark.grid import agreement, answer_all, checked_images
from winnow.benchmark.peak_throughput import peaks
from winnow.benchmark.timing import settle, time_pair
from winnow.config import Config
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import NEEDED_AGREEMENT, BenchmarkCase, Precision, Predict, open_cell, openvino_modes
from winnow.errors import ArtifactError, ConfigError
from winnow.evaluation.metrics import load_logits
from winnow.hardware import cores
from winnow.selection.decision import batch_of_objective
from winnow.timing_lock import compute_lock, timing_lock

TIMED = ("latency", "throughput")
"""Objectives that are times."""
VISITS, CALLS_SINGLE, CALLS_LARGE = 5, 40, 3
ENERGY_VISITS, ENERGY_SECONDS = 3, 1.0


def batch_of(config: Config) -> int:
    """Images a call, by the objective."""
    return batch_of_objective(config.search.objective, config.benchmark.large_batch)


class CostMeasurer:
    """Measures a file's cost beside dense's, by the objective that is set."""

    def __init__(self, config: Config, dense: Path, image_size: int, dense_cost: float | None = None) -> None:
        self.settings = config.search
        self.batch = batch_of(config)
        self.pixels_NHWC = np.random.default_rng(0).integers(0, 256, (self.batch, image_size, image_size, 3), np.uint8)
        runtime, threads = self.settings.runtime, cores()
        if runtime not in (*openvino_modes(self.batch, threads), "ort"):
            raise ConfigError(
                f"search.runtime: batches of {self.batch} are not dealt out to streams on {threads} threads: set "
                "benchmark.large_batch to a multiple of them, or runtime: openvino"
            )
        self.dense = dense
        self.reference = self._open(dense, "f32")
        if self.settings.objective == "energy" and joules(lambda: None) is None:
            raise ConfigError(
                "search.objective: energy cannot be read here (no powercap counter that may be read); use latency"
            )
        self.dense_cost = self._measured(dense, "f32")[0] if dense_cost is None else dense_cost

    def cost(self, folder: Path, precision: Precision) -> float:
        """ms a call, seconds an image of a large batch, MB, or mJ an image: the less the better.

        What is measured counts as if dense cost beside it what it cost at first.
        """
        own, dense = self._measured(folder, precision)
        return own / dense * self.dense_cost

    def peaks(self) -> dict[Precision, float]:
        """Precision -> multiply-adds a second of this processor at its best; none where the objective is no time."""
        if self.settings.objective not in TIMED:
            return {}
        with timing_lock():
            return peaks()

    def check_answers(self, folder: Path, precision: Precision, images: ImageSet) -> None:
        """Raise ArtifactError where the runtime answers something else than the file does in ONNX Runtime."""
        if self.settings.objective == "size":
            return
        predict, (pixels_NHWC, answers) = self._open(folder, precision), checked_images(images, {folder.name: folder})
        with compute_lock():
            share = agreement(predict, self.batch, pixels_NHWC, answers[folder.name])
        needed = NEEDED_AGREEMENT[precision]
        if share < needed:
            raise ArtifactError(
                f"{self.settings.runtime} {precision} answers {share:.1%} of {len(pixels_NHWC)} images as the file "
                f"does in ONNX Runtime, needed {needed:.0%}"
            )

    def answers(self, folder: Path, precision: Precision, images: ImageSet) -> NDArray[np.float32]:
        """Return the logits (V, C) of all validation images in the runtime, precision and batch of the cost.

        Where cost is the size of the file there is none, and the file answers in ONNX Runtime.
        """
        if self.settings.objective == "size":
            return load_logits(folder, images)
        predict = self._open(folder, precision)
        with compute_lock():
            return answer_all(predict, self.batch, images.images_NHWC, images.indices(VALIDATION))

    def _measured(self, folder: Path, precision: Precision) -> tuple[float, float]:
        """What the file costs, and what dense does beside it."""
        objective = self.settings.objective
        if objective == "size":
            own, dense = ((each / MODEL).stat().st_size / 1e6 for each in (folder, self.dense))
            return own, dense
        predict = self._open(folder, precision)
        if objective == "energy":
            return self._millijoules(predict)
        calls = CALLS_SINGLE if self.batch == 1 else CALLS_LARGE
        times = time_pair(predict, self.reference, self.pixels_NHWC, calls, VISITS)
        own, dense = (statistics.median(rounds) for rounds in times)
        scale = 1e3 * self.batch if objective == "throughput" else 1.0
        return own / scale, dense / scale

    def _open(self, folder: Path, precision: Precision) -> Predict:
        cell = BenchmarkCase(folder.name, self.settings.runtime, precision, "file", self.batch, cores())
        return open_cell(folder, cell)

    def _millijoules(self, predict: Predict) -> tuple[float, float]:
        """An image's, and dense's, visited in turns."""
        spent = {predict: 0.0, self.reference: 0.0}
        with timing_lock():
            for visit in range(ENERGY_VISITS):
                # Neither is always the first.
                for file in (predict, self.reference) if visit % 2 == 0 else (self.reference, predict):
                    spent[file] += self._visit_mj(file)
        return spent[predict] / ENERGY_VISITS, spent[self.reference] / ENERGY_VISITS

    def _visit_mj(self, predict: Predict) -> float:
        """mJ an image over a second of calls."""
        calls = 0

        def answer() -> None:
            nonlocal calls
            until = time.perf_counter() + ENERGY_SECONDS
            while time.perf_counter() < until:
                predict(self.pixels_NHWC)
                calls += 1

        settle()
        predict(self.pixels_NHWC)
        taken = joules(answer)
        if taken is None:
            raise ConfigError("search.objective: energy could be read before and cannot now; use latency")
        return taken / calls / self.batch * 1e3


def seconds_an_image(settings: Any, cost: float) -> float | None:
    """Of a cost that is a time; None for others."""
    return {"latency": cost / 1e3, "throughput": cost}.get(settings.objective)


def describe_cost(settings: Any, cost: float) -> str:
    """For people."""
    if settings.objective == "throughput":
        return f"{1 / cost:,.0f} images/s"
    unit = {"latency": "ms", "size": "MB", "energy": "mJ an image"}[settings.objective]
    return f"{cost:.3g} {unit}"
