"""Measure the cost of a file by the objective: time per call or image, bytes or energy, measured with dense."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.energy import measure_joules
from winnow.benchmark.peak_throughput import measure_peaks
from winnow.benchmark.prediction_check import agreement, predict_all, sample_check_images
from winnow.benchmark.timing import time_pair, wait_until_idle
from winnow.config import Config
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT, Predict, openvino_modes
from winnow.errors import ArtifactError, ConfigError
from winnow.evaluation.metrics import load_logits
from winnow.hardware import cores
from winnow.records.benchmark import BenchmarkCase, Precision
from winnow.selection.decision import batch_of_objective
from winnow.timing_lock import compute_lock, timing_lock

TIME_OBJECTIVES = ("latency", "throughput")
"""Objectives that are times."""
VISITS, CALLS_SINGLE, CALLS_LARGE = 5, 40, 3
ENERGY_VISITS, ENERGY_SECONDS = 3, 1.0


def objective_batch_size(config: Config) -> int:
    """Return the number of images per call for the search's objective."""
    return batch_of_objective(config.search.objective, config.benchmark.large_batch)


class CostMeasurer:
    """Measures the cost of a file and of dense beside it, by the search's objective."""

    def __init__(self, config: Config, dense: Path, image_size: int, dense_cost: float | None = None) -> None:
        self.settings = config.search
        self.batch = objective_batch_size(config)
        self.pixels_NHWC = np.random.default_rng(0).integers(0, 256, (self.batch, image_size, image_size, 3), np.uint8)
        runtime, threads = self.settings.runtime, cores()
        if runtime not in (*openvino_modes(self.batch, threads), "ort"):
            raise ConfigError(
                f"search.runtime: batches of {self.batch} cannot be split over streams on {threads} threads: set "
                "benchmark.large_batch to a multiple of the threads, or runtime: openvino"
            )
        self.dense = dense
        self.reference = self._open(dense, "f32")
        if self.settings.objective == "energy" and measure_joules(lambda: None) is None:
            raise ConfigError(
                "search.objective: energy cannot be measured here (no readable powercap counter); use latency"
            )
        self.dense_cost = self._measure(dense, "f32")[0] if dense_cost is None else dense_cost

    def cost(self, folder: Path, precision: Precision) -> float:
        """Return ms per call, seconds per image of a large batch, MB, or mJ per image: less is better.

        The cost is scaled by dense's cost at the start of the search over dense's cost measured beside the file, so
        that a drifting clock moves no trial against another.
        """
        own, dense = self._measure(folder, precision)
        return own / dense * self.dense_cost

    def peaks(self) -> dict[Precision, float]:
        """Return precision -> this processor's peak multiply-adds per second; empty where cost is not a time."""
        if self.settings.objective not in TIME_OBJECTIVES:
            return {}
        with timing_lock():
            return measure_peaks()

    def check_answers(self, folder: Path, precision: Precision, images: ImageSet) -> None:
        """Raise ArtifactError where the runtime's predictions differ from those of the file in ONNX Runtime."""
        if self.settings.objective == "size":
            return
        predict, (pixels_NHWC, file_answers) = (
            self._open(folder, precision),
            sample_check_images(images, {folder.name: folder}),
        )
        with compute_lock():
            share = agreement(predict, self.batch, pixels_NHWC, file_answers[folder.name])
        needed = NEEDED_AGREEMENT[precision]
        if share < needed:
            raise ArtifactError(
                f"{self.settings.runtime} {precision} agrees with the file in ONNX Runtime on {share:.1%} of "
                f"{len(pixels_NHWC)} images; {needed:.0%} are needed"
            )

    def answers(self, folder: Path, precision: Precision, images: ImageSet) -> NDArray[np.float32]:
        """Return the logits (V, C) of all validation images in the runtime, precision and batch of the cost.

        Where the cost is the file's size, the file is evaluated in ONNX Runtime.
        """
        if self.settings.objective == "size":
            return load_logits(folder, images)
        predict = self._open(folder, precision)
        with compute_lock():
            return predict_all(predict, self.batch, images.images_NHWC, images.indices(VALIDATION))

    def _measure(self, folder: Path, precision: Precision) -> tuple[float, float]:
        """Return the cost of the file and that of dense, measured beside it."""
        objective = self.settings.objective
        if objective == "size":
            own, dense = ((path / MODEL).stat().st_size / 1e6 for path in (folder, self.dense))
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
        case = BenchmarkCase(folder.name, self.settings.runtime, precision, "file", self.batch, cores())
        return open_case(folder, case)

    def _millijoules(self, predict: Predict) -> tuple[float, float]:
        """Return mJ per image of the file and of dense, measured interleaved."""
        millijoules = {predict: 0.0, self.reference: 0.0}
        with timing_lock():
            for visit in range(ENERGY_VISITS):
                # The order alternates, so that neither is always first.
                for file in (predict, self.reference) if visit % 2 == 0 else (self.reference, predict):
                    millijoules[file] += self._visit_mj(file)
        return millijoules[predict] / ENERGY_VISITS, millijoules[self.reference] / ENERGY_VISITS

    def _visit_mj(self, predict: Predict) -> float:
        """Return mJ per image over a second of calls."""
        calls = 0

        def answer() -> None:
            nonlocal calls
            deadline = time.perf_counter() + ENERGY_SECONDS
            while time.perf_counter() < deadline:
                predict(self.pixels_NHWC)
                calls += 1

        wait_until_idle()
        predict(self.pixels_NHWC)
        energy_joules = measure_joules(answer)
        if energy_joules is None:
            raise ConfigError("search.objective: energy could be measured at first, but not any more; use latency")
        return energy_joules / calls / self.batch * 1e3


def seconds_per_image(settings: Any, cost: float) -> float | None:
    """Return a cost that is a time as seconds per image; None for other objectives."""
    return {"latency": cost / 1e3, "throughput": cost}.get(settings.objective)


def describe_cost(settings: Any, cost: float) -> str:
    """Return a cost with its unit, for people."""
    if settings.objective == "throughput":
        return f"{1 / cost:,.0f} images/s"
    unit = {"latency": "ms", "size": "MB", "energy": "mJ an image"}[settings.objective]
    return f"{cost:.3g} {unit}"
