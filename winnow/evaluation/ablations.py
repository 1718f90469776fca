"""Ablations from the controls in the candidate tree: gains from longer training and from a teacher.

Also selects the reference, dense or dense-kd. Pure functions: correct predictions per image in, points out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, ROOT, Config, TrainedCandidate
from winnow.evaluation.intervals import paired_drop
from winnow.records.selection import ControlGain

CorrectByCandidate = Mapping[str, NDArray[np.bool_]]
"""Candidate -> True where its prediction is correct, for each labelled validation image."""


def stronger_baseline(right: CorrectByCandidate) -> str:
    """Return dense-kd if it is in the tree and has more correct validation images than dense, else dense."""
    return CONTROL if CONTROL in right and right[CONTROL].sum() > right[ROOT].sum() else ROOT


def control_gains(
    config: Config, right: CorrectByCandidate, groups_L: NDArray[np.int64] | None = None
) -> list[ControlGain]:
    """Return the paired top-1 gain, in points, of each candidate over its control.

    The control of a candidate with a teacher is the same one without a teacher; that of longer training is dense.
    `groups_L`: group of each labelled validation image.
    """
    pairs = [("training on", CONTROL, ROOT)] if CONTROL in config.candidates else []
    recovered = {
        name: candidate for name, candidate in config.candidates.items() if isinstance(candidate, TrainedCandidate)
    }
    for untaught, control in recovered.items():
        for name, taught in recovered.items():
            same = _without_teacher(taught) == _without_teacher(control)
            if same and control.recovery.teacher == "none" and taught.recovery.teacher != "none":
                pairs.append(("a teacher", name, untaught))
    rows = []
    for source, name, control_name in pairs if right else []:
        gain = paired_drop(right[name], right[control_name], groups_N=groups_L)
        rows.append(
            ControlGain(
                bought_by=source,
                candidate=name,
                control=control_name,
                points=gain.points,
                low=gain.low,
                high=gain.high,
                confidence=gain.confidence,
            )
        )
    return rows


def _without_teacher(candidate: TrainedCandidate) -> dict[str, Any]:
    """Return all settings but those that a control changes.

    These are the teacher, what else is learned from networks, the images that only a teacher can use, and the
    augmentation: training on labels alone needs more of it, and with the teacher's augmentation the control would be
    weaker than necessary.
    """
    changed = {"teacher", "teacher_weight", "temperature", "hint", "hint_weight", "images", "augmentation"}
    return candidate.model_dump(exclude={"recovery": changed})
