"""Compare a trial's predictions with the better of dense and dense-kd, on a part of the validation images.

A search tries dozens of candidates, so one half of validation chooses and the other confirms (winnow/data/splits.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import VALIDATION, ImageSet
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.accuracy_drop import measure_drops
from winnow.evaluation.metrics import correct_predictions, load_logits
from winnow.records import atomic_path
from winnow.records.selection import Drop, DropEvidence

LOGITS_FILE = "answers.npy"
"""File name of the logits of a trial's last candidate for the validation images, as it answers where it is timed."""


def reference_logits(references: Mapping[str, Path], images: ImageSet) -> NDArray[np.float32]:
    """Return the logits (V, C) of the better of dense and dense-kd. `references`: name -> folder."""
    logits = {name: load_logits(folder, images) for name, folder in references.items()}
    return logits[stronger_baseline(correct_predictions(logits, images))]


def points_lost(
    reference_VC: NDArray[np.float32], answers_VC: NDArray[np.float32], images: ImageSet, part_V: NDArray[np.bool_]
) -> Drop:
    """Return the points of top-1 lost on these images; without labels, the share of changed predictions in percent."""
    drop = measure_drop(reference_VC, answers_VC, images, part_V)
    return drop.labelled or drop.answers


def measure_drop(
    reference_VC: NDArray[np.float32],
    answers_VC: NDArray[np.float32],
    images: ImageSet,
    part_V: NDArray[np.bool_],
    candidates: int = 1,
) -> DropEvidence:
    """Return the evidence for the points of top-1 that a candidate loses on the validation images of `part_V`.

    `candidates`: how many have been compared on these images; the interval widens with them.
    """
    indices_P = images.indices(VALIDATION)[part_V]
    labels_P, groups_P = images.labels_N[indices_P], images.groups_N[indices_P]
    return measure_drops(reference_VC[part_V], answers_VC[part_V], labels_P, candidates, groups_P).top1


def save_logits(folder: Path, answers_VC: NDArray[np.float32]) -> None:
    """Write a trial's logits for the validation images (V, C) into its folder, whole or not at all."""
    with atomic_path(folder / LOGITS_FILE) as temporary, temporary.open("wb") as file:
        np.save(file, answers_VC)
