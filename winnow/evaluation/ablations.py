"""What the controls of the tree say: which of dense and dense-kd is the reference, and what training on and a teacher
bought. Pure: who is right on which image in, points out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import CONTROL, ROOT, Config, Recovered
from winnow.evaluation.intervals import paired_drop

Right = Mapping[str, NDArray[np.bool_]]
"""Candidate -> is its answer right, for each labelled validation image."""


def stronger_baseline(right: Right) -> str:
    """dense, or dense-kd where it is in the tree and has more validation images right."""
    return CONTROL if CONTROL in right and right[CONTROL].sum() > right[ROOT].sum() else ROOT


def controls(config: Config, right: Right, groups_L: NDArray[np.int64] | None = None) -> list[dict[str, Any]]:
    """What training on, and what a teacher bought: points of top-1 that a candidate has over its control, paired.

    The control of a taught candidate is the same one without a teacher; that of training on is dense itself.
    `groups_L`: group of each labelled validation image.
    """
    pairs = [("training on", CONTROL, ROOT)] if CONTROL in config.candidates else []
    recovered = {name: c for name, c in config.candidates.items() if isinstance(c, Recovered)}
    for alone, control in recovered.items():
        for name, taught in recovered.items():
            same = _without_teacher(taught) == _without_teacher(control)
            if same and control.recovery.teacher == "none" and taught.recovery.teacher != "none":
                pairs.append(("a teacher", name, alone))
    rows = []
    for what, name, control_name in pairs if right else []:
        gain = paired_drop(right[name], right[control_name], groups_N=groups_L)
        rows.append({"bought_by": what, "candidate": name, "control": control_name, **asdict(gain)})
    return rows


def _without_teacher(candidate: Recovered) -> dict[str, Any]:
    """Return all settings but what a control changes: the teacher, the images that only a teacher can use, and the
    augmentation, of which labels alone want more: a control weakened by its teacher's would flatter the teacher."""
    changed = {"teacher", "teacher_weight", "temperature", "images", "augmentation"}
    return candidate.model_dump(exclude={"recovery": changed})
