"""Measure a finished candidate on the validation split and write its card.

The exported file is measured (in ONNX Runtime), not its network. For a float candidate parity is checked, too: the
file's logits must equal the network's on the same images.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.batch_inference import predict_file, predict_torch
from winnow.deploy.onnx_export import PARITY_TOLERANCE, OnnxContents, inspect_onnx, zipped_bytes
from winnow.deploy.onnx_session import INPUT, MODEL, OUTPUT
from winnow.errors import ArtifactError
from winnow.evaluation.metrics import VALIDATION_LOGITS, agreement, load_logits, quality_metrics, temperature_metrics
from winnow.models.backbones import WEIGHTS_FILE, build_model, load_architecture, load_model
from winnow.records import CandidateCard
from winnow.records.candidate_file import CandidateFile, LabelCounts
from winnow.records.card import CardTensor

log = logging.getLogger(__name__)

PARITY_IMAGES = 64
INPUT_NOTE = {
    "f32": "RGB, not normalised",
    "int8": "RGB, not normalised. In OpenVINO reshape the model to a fixed N first: with N free its results are wrong",
}
"""The note on the model's input, by the file's precision."""


def finish_candidate(
    folder: Path,
    *,
    name: str,
    method: str,
    lineage: list[str],
    images: ImageSet,
    budget: NDArray[np.int64],
    dense: Path | None,
    parent: Path | None = None,
) -> tuple[dict[str, float], CandidateFile]:
    """Measure folder/model.onnx, write validation_logits.npy and card.json beside it, and return (metrics, details).

    `dense` and `parent` are the folders to compare with, None for dense itself. Raises ArtifactError where the file's
    logits differ from its network's.
    """
    indices = images.indices(VALIDATION)
    logits_NC = predict_file(folder / MODEL, images.images_NHWC, indices)
    np.save(folder / VALIDATION_LOGITS, logits_NC)
    labels_N = images.labels_N[indices]
    labelled_N = labels_N >= 0
    metrics, by_class = quality_metrics(
        logits_NC[labelled_N], labels_N[labelled_N], images.classes, images.groups_N[indices[labelled_N]]
    )
    metrics |= temperature_metrics(logits_NC[labelled_N], labels_N[labelled_N])
    metrics["quality/agreement"] = _agreement(logits_NC, dense, images)
    metrics["quality/agreement_parent"] = _agreement(logits_NC, parent or dense, images)
    if dense is not None and "quality/top1" in metrics:
        reference_N = load_logits(dense, images)[labelled_N].argmax(1)
        metrics["delta/top1"] = (metrics["quality/top1"] - float((reference_N == labels_N[labelled_N]).mean())) * 100
    elif "quality/top1" in metrics:
        metrics["delta/top1"] = 0.0
    contents = inspect_onnx(folder / MODEL)
    if (folder / WEIGHTS_FILE).is_file():
        metrics["parity/max_abs_difference"] = check_parity(folder, images, indices[:PARITY_IMAGES])
    metrics |= _size_metrics(folder, contents)
    details = CandidateFile(
        **dict(by_class),
        method=method,
        precision=contents.precision,
        lineage=lineage,
        labels=LabelCounts(
            training=len(budget),
            choosing=int(labelled_N.sum()),
            choosing_groups=images.group_count(indices[labelled_N]),
        ),
    )
    _write_card(folder, name, images, metrics, details)
    return metrics, details


def _agreement(logits_NC: NDArray[np.float32], other: Path | None, images: ImageSet) -> float:
    return 1.0 if other is None else agreement(logits_NC, load_logits(other, images))


def check_parity(folder: Path, images: ImageSet, indices: NDArray[np.int64]) -> float:
    """Return the largest difference of logits between the file in `folder` and the network beside it.

    Raises ArtifactError where it exceeds PARITY_TOLERANCE.
    """
    model, _ = load_model(folder)
    expected_NC = predict_torch(model, images.images_NHWC, indices)
    actual_NC = predict_file(folder / MODEL, images.images_NHWC, indices)
    difference = float(np.abs(expected_NC - actual_NC).max())
    tolerance = PARITY_TOLERANCE * max(1.0, float(np.abs(expected_NC).max()))
    if not difference <= tolerance:  # also where the network's logits are not finite
        raise ArtifactError(
            f"{folder / MODEL}: the exported file differs from the network by {difference:.2g} in its logits, "
            f"more than {tolerance:.2g}; this backbone cannot be exported correctly, choose another one"
        )
    return difference


def _size_metrics(folder: Path, contents: OnnxContents) -> dict[str, float]:
    """Return the sizes of the file (MB are 1e6 bytes) and of its network."""
    network = build_model(load_architecture(folder))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    zeros = contents.zeros
    if (folder / WEIGHTS_FILE).is_file():
        network = load_model(folder)[0]
        zeros = sum(int((parameter == 0).sum()) for parameter in network.parameters())
    return {
        "size/mb": (folder / MODEL).stat().st_size / 1e6,
        "size/zipped_mb": zipped_bytes(folder / MODEL) / 1e6,
        "size/parameters": float(parameters),
        "size/nonzero_parameters": float(parameters - zeros),
        "compute/macs": float(contents.macs),
        "compute/int8_share": contents.int8_macs / contents.macs if contents.macs else 0.0,
    }


def _write_card(folder: Path, name: str, images: ImageSet, metrics: dict[str, float], details: CandidateFile) -> None:
    """Write the card: classes, input, output, preprocessing and metrics of the file."""
    side, note = images.image_size, INPUT_NOTE[details.precision]
    card = CandidateCard(
        name=name,
        method=details.method,
        lineage=details.lineage,
        precision=details.precision,
        labels=details.labels,
        classes=list(images.classes),
        image_size=side,
        **asdict(images.preprocessing),
        resize_policy=images.preprocessing.policy.replace("S", str(side)),
        input=CardTensor(name=INPUT, type="uint8", shape=["N", side, side, 3], note=note),
        output=CardTensor(
            name=OUTPUT,
            type="float32",
            shape=["N", len(images.classes)],
            note="logits; softmax(logits / temperature) are probabilities",
        ),
        temperature=metrics["quality/temperature"],
        metrics=metrics,
        measured_on="the validation split",
    )
    if known := load_architecture(folder).known_weights:
        card = card.model_copy(update={"known_weights": list(known)})
    card.write(folder)
