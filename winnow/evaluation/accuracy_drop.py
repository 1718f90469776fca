"""The accuracy drop of a child against a reference, from labels and from predictions alone.

Labels are expensive and images are not. Where two networks give the same prediction, neither has lost. So the share of
images whose prediction differs bounds the drop in top-1 without any label. Macro F1 has no such bound (a rare class may
be a small share), so agreement with the reference, class by class, is used as a proxy. Both hold for images that
neither network was trained or calibrated on, and if the labelled images are a random sample.

The number of labels fixes in advance which of the two decides: labels if there are FEW_LABELS or every image has one,
else predictions. So each candidate is tested once, and the intervals of all candidates hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.config import FEW_LABELS
from winnow.evaluation.effective_sample_size import image_groups
from winnow.evaluation.intervals import disagreement_interval, paired_drop, simultaneous_confidence
from winnow.evaluation.macro_f1_drop import macro_f1_drop
from winnow.records.selection import DropEvidence, Route


@dataclass(frozen=True)
class DropReport:
    """The evidence for both metrics."""

    top1: DropEvidence
    macro_f1: DropEvidence


def decision_route(labels_N: NDArray[np.int64]) -> Route:
    """Return whether labels or predictions decide, given the labels of the images (-1: none)."""
    labelled = int((labels_N >= 0).sum())
    return "labels" if labelled >= FEW_LABELS or labelled == len(labels_N) else "answers"


def measure_drops(
    reference_NC: NDArray[np.float32],
    child_NC: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    candidates: int = 1,
    groups_N: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
) -> DropReport:
    """Return the drop of a child's logits against a reference's on the same images; label -1: none.

    `candidates`: number of children compared with the reference at once, including this one. `groups_N`: group of each
    image; intervals count groups if these hold several images (winnow/evaluation/effective_sample_size.py).
    `classes`: names, for messages.
    """
    reference_N, child_N = (logits_NC.argmax(1).astype(np.int64) for logits_NC in (reference_NC, child_NC))
    scored_N = labels_N >= 0
    route, confidence = decision_route(labels_N), simultaneous_confidence(candidates)
    top1 = macro_f1 = None
    unchanged = 0.0
    labelled_groups_N = None if groups_N is None else groups_N[scored_N]
    if scored_N.any():
        truth_L, reference_L, child_L = labels_N[scored_N], reference_N[scored_N], child_N[scored_N]
        top1 = paired_drop(reference_L == truth_L, child_L == truth_L, confidence, labelled_groups_N)
        macro_f1 = macro_f1_drop(truth_L, reference_L, child_L, confidence=confidence, groups_N=labelled_groups_N)
        no_change = macro_f1_drop(truth_L, truth_L, truth_L, confidence=confidence, groups_N=labelled_groups_N)
        unchanged = no_change.high
    disagreement = disagreement_interval(reference_N, child_N, confidence, groups_N)
    proxy = macro_f1_drop(reference_N, reference_N, child_N, confidence=confidence, groups_N=groups_N)
    deciding = image_groups(labelled_groups_N if route == "labels" else groups_N)
    rarest = _rarest(labels_N[scored_N], classes)
    images = int(scored_N.sum()) if route == "labels" else len(labels_N)
    groups = None if deciding is None else deciding.groups
    return DropReport(
        DropEvidence(top1, disagreement, route, candidates, images=images, groups=groups),
        DropEvidence(macro_f1, proxy, route, candidates, unchanged, images, groups, rarest),
    )


def _rarest(labels_L: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return the class with the fewest labels, among those with any, and the number, as text."""
    if not classes or len(labels_L) == 0:
        return ""
    present, counts = np.unique(labels_L, return_counts=True)
    least = int(counts.argmin())
    images = "1 image" if counts[least] == 1 else f"{counts[least]:,} images"
    return f"{images} of class {classes[int(present[least])]!r}"
