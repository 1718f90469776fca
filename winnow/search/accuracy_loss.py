"""What a trial loses against the better of dense and dense-kd, from answers that were kept: on a part of validation.

A search tries dozens, so one half of validation chooses and the other confirms (winnow/data/splits.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import VALIDATION, ImageSet
from winnow.evaluation.ablations import stronger_baseline
from winnow.evaluation.accuracy_drop import DropEvidence, losses
from winnow.evaluation.intervals import Drop
from winnow.evaluation.metrics import load_logits, right_answers
from winnow.records import renamed

ANSWERS = "answers.npy"
"""What a trial's last candidate answers to the validation images where it is timed, beside its candidates."""


def reference_logits(references: Mapping[str, Path], images: ImageSet) -> NDArray[np.float32]:
    """Return the logits (V, C) of the better of dense and dense-kd. `references`: name -> its folder."""
    known = {name: load_logits(at, images) for name, at in references.items()}
    return known[stronger_baseline(right_answers(known, images))]


def lost(
    reference_VC: NDArray[np.float32], answers_VC: NDArray[np.float32], images: ImageSet, part_V: NDArray[np.bool_]
) -> Drop:
    """Return the points of top-1 lost on these validation images; where none has a label, answers that change, %."""
    top1 = evidence(reference_VC, answers_VC, images, part_V)
    return top1.labelled or top1.answers


def evidence(
    reference_VC: NDArray[np.float32],
    answers_VC: NDArray[np.float32],
    images: ImageSet,
    part_V: NDArray[np.bool_],
    candidates: int = 1,
) -> DropEvidence:
    """Return what is known of the points of top-1 that a candidate loses on the validation images of `part_V`.

    `candidates`: how many have been looked at on these images.
    """
    indices_P = images.indices(VALIDATION)[part_V]
    labels_P, groups_P = images.labels_N[indices_P], images.groups_N[indices_P]
    return losses(reference_VC[part_V], answers_VC[part_V], labels_P, candidates, groups_P).top1


def keep_answers(home: Path, answers_VC: NDArray[np.float32]) -> None:
    """Leave what a trial answers to the validation images (V, C) in its folder, whole or not at all."""
    with renamed(home / ANSWERS) as temporary, temporary.open("wb") as file:
        np.save(file, answers_VC)
