"""Logits of a candidate as it is deployed: in the runtime, precision and batch size of production.

    answers = deployed_answers(artifacts, "pruned-int8", selection.details, images)
    answers.test(indices)          logits (N, C) of any images
    answers.validation()           logits (V, C) of the validation split, in the same runtime
    answers.measured_in            "openvino int8, batches of 1"

`select` recorded the benchmark row that serves. If this machine cannot run it, because it was timed on another machine
(`benchmark.target`) or the runtime is missing, ONNX Runtime runs the file instead, and `fallback` gives the reason.
Validation and test always use the same runtime, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.prediction_check import predict_all
from winnow.data.dataset import ImageSet
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtime_properties import Predict, RuntimeUnavailable
from winnow.errors import MissingExtra
from winnow.evaluation.metrics import benchmark_logits_file, load_logits
from winnow.hardware import has_fast_bf16
from winnow.records.benchmark import BenchmarkRow
from winnow.records.selection import SelectionDetails, ServingSpeeds
from winnow.timing_lock import compute_lock

IN_ONNX_RUNTIME = "ONNX Runtime, the file as it is"


@dataclass(frozen=True)
class DeployedPredictions:
    """The runtime that computes the logits, and functions that return them."""

    measured_in: str
    fallback: str
    """Reason why this is not the runtime of production; empty if it is."""
    test: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    """Indices (N,) -> logits (N, C)."""
    validation: Callable[[], NDArray[np.float32]]
    """Logits (V, C)."""


def deployed_predictions(
    artifacts: Path, name: str, selection: SelectionDetails, images: ImageSet, refitted: Path | None = None
) -> DeployedPredictions:
    """Return the logits of a candidate as it is deployed. `selection`: details of the record of `select`.

    `refitted`: the folder of its refit, whose file is used for test images. Validation images trained that file, so the
    selected file is used for them. Raises ArtifactError for a file that cannot be opened.
    """
    row = selection.served.get(name)
    selected = artifacts / "candidates" / name
    folder = refitted or selected
    opened = _open(folder, row, artifacts / "benchmark", selection.speeds)
    if isinstance(opened, str):
        return DeployedPredictions(
            IN_ONNX_RUNTIME,
            opened,
            lambda indices_N: predict_file(folder / MODEL, images.images_NHWC, indices_N),
            lambda: load_logits(selected, images),
        )
    assert row is not None
    batch, answers_file = row.batch, benchmark_logits_file(row)
    note = " (timed on another machine, predicted on this one)" if selection.speeds.is_target else ""

    @compute_lock()
    def predict(indices_N: NDArray[np.int64]) -> NDArray[np.float32]:
        return predict_all(opened, batch, images.images_NHWC, indices_N)

    return DeployedPredictions(
        f"{row.runtime} {row.precision}, batches of {batch}{note}",
        "",
        predict,
        lambda: load_logits(artifacts / "benchmark", images, answers_file),
    )


def _open(folder: Path, row: BenchmarkRow | None, benchmark: Path, speeds: ServingSpeeds) -> Predict | str:
    """Return the predict function of the benchmark row, or the reason why it cannot run here."""
    if row is None:
        return "no runtime that could serve it was timed"
    runtime = f"{row.runtime} {row.precision}"
    if speeds.is_target and not (benchmark / benchmark_logits_file(row)).is_file():
        machine = speeds.machine.cpu
        return f"it is deployed in {runtime} on {machine}, for which the benchmark on this machine has no predictions"
    if row.precision == "bf16" and not has_fast_bf16():
        return f"it is deployed in {runtime}, which the processor of this machine does not support"
    try:
        return open_case(folder, row.case)
    except (RuntimeUnavailable, MissingExtra) as error:
        return f"it is deployed in {runtime}, which does not run on this machine ({error})"
