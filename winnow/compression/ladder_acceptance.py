"""What int8 files lose against their float parent: on the half of validation that chooses one, and on the other half.

Of several files the best on one set of images looks better than it is. So one half chooses (winnow/data/splits.py), and
what was chosen takes the place of plain static quantization only where it loses less on the half that did not choose.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.compression.method_inputs import Inputs
from winnow.data.dataset import VALIDATION
from winnow.data.splits import choosing_half
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.onnx_session import MODEL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judge:
    """What counts as right on a half of validation: an image's label; where there is none, what the parent answers."""

    images_NHWC: NDArray[np.uint8]
    """All images, as they lie on disk."""
    indices_V: NDArray[np.int64]
    wanted_V: NDArray[np.int64]
    right: float
    """Share that the parent has right."""

    @classmethod
    def halves(cls, inputs: Inputs) -> tuple[Judge, Judge]:
        """Return the judge that chooses and the one that confirms, from the parent's file."""
        images, indices_V = inputs.images, inputs.images.indices(VALIDATION)
        answers_V = predict_file(inputs.parent / MODEL, images.images_NHWC, indices_V).argmax(1)
        labels_V = images.labels_N[indices_V]
        wanted_V = np.where(labels_V >= 0, labels_V, answers_V)
        chooses_V = choosing_half(images)
        choosing, confirming = (
            cls(images.images_NHWC, indices_V[half_V], wanted_V[half_V], float((answers_V == wanted_V)[half_V].mean()))
            for half_V in (chooses_V, ~chooses_V)
        )
        return choosing, confirming

    @property
    def pairs(self) -> list[tuple[NDArray[np.uint8], int]]:
        """Every image, read when it is looked at, with the answer that counts as right."""
        return [
            (self.images_NHWC[at : at + 1], int(wanted))
            for at, wanted in zip(self.indices_V, self.wanted_V, strict=True)
        ]

    def points_lost(self, file: Path) -> float:
        """Right answers of the parent less those of the file, in points."""
        answers_V = predict_file(file, self.images_NHWC, self.indices_V).argmax(1)
        return (self.right - float((answers_V == self.wanted_V).mean())) * 100


def confirm(judge: Judge, rung: str, static: Path, other: Path) -> dict[str, Any]:
    """Compare what was chosen with plain static on images that did not choose -> both losses, and which one stays."""
    lost, lost_by_static = judge.points_lost(other), judge.points_lost(static)
    confirmed = lost < lost_by_static
    log.info(
        "int8, %s: %.2f points lost on the half that confirms, static %.2f: %s",
        *(rung, lost, lost_by_static, "it stays" if confirmed else "not confirmed, static stays"),
    )
    return {"rung": rung, "points_lost": lost, "static_points_lost": lost_by_static, "confirmed": confirmed}
