"""Accuracy that int8 files lose against their float parent, on two halves of the validation split.

Of several files the best on one set of images looks better than it is. So one half selects (winnow/data/splits.py), and
the selected file replaces plain static quantization only where it loses less on the other half, which did not select.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.compression.method_inputs import MethodInputs
from winnow.data.dataset import VALIDATION
from winnow.data.splits import selection_half
from winnow.deploy.batch_inference import predict_file
from winnow.records.method_results import RungConfirmation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationHalf:
    """Images of one half with their targets: an image's label, or the parent's prediction where it has none."""

    images_NHWC: NDArray[np.uint8]
    """All images, in the order of the data set."""
    indices_V: NDArray[np.int64]
    targets_V: NDArray[np.int64]
    right: float
    """Accuracy of the parent on these targets, a fraction."""

    @classmethod
    def halves(cls, inputs: MethodInputs) -> tuple[ValidationHalf, ValidationHalf]:
        """Return the half that selects and the half that confirms, with targets from the parent's file."""
        images, indices_V = inputs.images, inputs.images.indices(VALIDATION)
        parent_V = predict_file(inputs.parent.onnx_file(), images.images_NHWC, indices_V).argmax(1)
        labels_V = images.labels_N[indices_V]
        targets_V = np.where(labels_V >= 0, labels_V, parent_V)
        selects_V = selection_half(images)
        selecting, confirming = (
            cls(images.images_NHWC, indices_V[half_V], targets_V[half_V], float((parent_V == targets_V)[half_V].mean()))
            for half_V in (selects_V, ~selects_V)
        )
        return selecting, confirming

    @property
    def pairs(self) -> list[tuple[NDArray[np.uint8], int]]:
        """Every image with its target; pixels are read on access."""
        return [
            (self.images_NHWC[index : index + 1], int(target))
            for index, target in zip(self.indices_V, self.targets_V, strict=True)
        ]

    def points_lost(self, file: Path) -> float:
        """Return the accuracy of the parent minus that of the file, in points."""
        predictions_V = predict_file(file, self.images_NHWC, self.indices_V).argmax(1)
        return (self.right - float((predictions_V == self.targets_V).mean())) * 100


def confirm_selection(confirming: ValidationHalf, rung: str, static: Path, selected: Path) -> RungConfirmation:
    """Compare the selected file with plain static quantization on the confirming half and return both losses."""
    points_lost, static_points_lost = confirming.points_lost(selected), confirming.points_lost(static)
    confirmed = points_lost < static_points_lost
    log.info(
        "int8, %s: %.2f points lost on the confirming half, static %.2f: %s",
        *(rung, points_lost, static_points_lost, "confirmed" if confirmed else "not confirmed, static is used"),
    )
    return RungConfirmation(
        rung=rung, points_lost=points_lost, static_points_lost=static_points_lost, confirmed=confirmed
    )
