"""Answers of a candidate as it is deployed: in the runtime, precision and batch that serve it.

    answers = deployed_answers(artifacts, "pruned-int8", selection.details, images)
    answers.test(indices)          logits (N, C) of any images
    answers.validation()           logits (V, C) of the validation split, from the same place
    answers.measured_in            "openvino int8, batches of 1"

The row that serves is the one that `select` recorded. Where this machine cannot run it, because it was timed on another
machine (`benchmark.target`) or because the runtime is missing here, the file answers in ONNX Runtime instead, and
`fallback` says why. Validation and test always answer in the same place, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.grid import answer_all
from winnow.data.dataset import ImageSet
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import Predict, RuntimeUnavailable, cell_of, open_cell
from winnow.errors import MissingExtra
from winnow.evaluation.metrics import load_logits, served_file
from winnow.hardware import has_fast_bf16
from winnow.timing_lock import compute_lock

IN_ONNX_RUNTIME = "ONNX Runtime, the file as it is"


@dataclass(frozen=True)
class DeployedAnswers:
    """Where a candidate answers, and how to ask it."""

    measured_in: str
    fallback: str
    """Why this is not the place that serves; empty where it is."""
    test: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    """Indices (N,) -> logits (N, C)."""
    validation: Callable[[], NDArray[np.float32]]
    """Logits (V, C)."""


def deployed_answers(
    artifacts: Path, name: str, selection: Mapping[str, Any], images: ImageSet, refitted: Path | None = None
) -> DeployedAnswers:
    """Return where the candidate answers as it is deployed. `selection`: details of the record of `select`.

    `refitted`: the folder of its refit, whose file answers test images; validation images taught that file, so they are
    answered by the selected one all the same. Raises ArtifactError for a file that cannot be opened.
    """
    row: Mapping[str, Any] | None = selection["served"].get(name)
    selected = artifacts / "candidates" / name
    folder = refitted or selected
    opened = _open(folder, row, artifacts / "benchmark", selection["speeds"])
    if isinstance(opened, str):
        return DeployedAnswers(
            IN_ONNX_RUNTIME,
            opened,
            lambda indices_N: predict_file(folder / MODEL, images.images_NHWC, indices_N),
            lambda: load_logits(selected, images),
        )
    assert row is not None
    batch, answers_file = int(row["batch"]), served_file(row)
    here = " (timed on another machine, answered on this one)" if selection["speeds"]["is_target"] else ""

    @compute_lock()
    def answer(indices_N: NDArray[np.int64]) -> NDArray[np.float32]:
        return answer_all(opened, batch, images.images_NHWC, indices_N)

    return DeployedAnswers(
        f"{row['runtime']} {row['precision']}, batches of {batch}{here}",
        "",
        answer,
        lambda: load_logits(artifacts / "benchmark", images, answers_file),
    )


def _open(folder: Path, row: Mapping[str, Any] | None, benchmark: Path, speeds: Mapping[str, Any]) -> Predict | str:
    """Return the function of the cell that serves, or the reason why it cannot answer here."""
    if row is None:
        return "no runtime was timed that could serve it"
    where = f"{row['runtime']} {row['precision']}"
    if speeds["is_target"] and not (benchmark / served_file(row)).is_file():
        machine = speeds["machine"]["cpu"]
        return f"it will serve in {where} on {machine}, and the benchmark of this machine has no answers in that"
    if row["precision"] == "bf16" and not has_fast_bf16():
        return f"it will serve in {where}, which the processor of this machine does not have"
    try:
        return open_cell(folder, cell_of(row))
    except (RuntimeUnavailable, MissingExtra) as error:
        return f"it will serve in {where}, which does not run here ({error})"
