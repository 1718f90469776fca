"""What is known of a child's loss against a reference: what labels show, and what the answers alone prove.

Labels are dear and images are not. Where two networks give the same answer, neither has lost: the share of images that
get another answer bounds the drop in top-1, whatever the labels would say, and needs none. For macro F1 there is no
such bound (a rare class may hide in a small share), so keeping the reference's answers class by class is a stand-in.
Both hold for images that neither was trained or calibrated on, and as far as
images with a label are a fair draw of all.

Which of the two decides is fixed before anybody answers, by the number of labels: labels where there are FEW_LABELS or
where every image has one, else the answers. So each candidate is tested once, and as many intervals hold together as
candidates compete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from winnow.config import FEW_LABELS
from winnow.evaluation.effective_sample_size import clusters
from winnow.evaluation.intervals import Drop, disagreement_interval, paired_drop, simultaneous_confidence
from winnow.evaluation.macro_f1_drop import macro_f1_drop

Route = Literal["labels", "answers"]


@dataclass(frozen=True)
class DropEvidence:
    """Of one loss, in points."""

    labelled: Drop | None
    """On the labelled images; None without any."""
    answers: Drop
    """On all images: the share that gets another answer (top-1), or what is lost with the reference's answers as truth
    (macro F1)."""
    route: Route = "labels"
    """What decides."""
    candidates: int = 1
    """That were compared at once: the intervals hold for all of them together in 95 of 100 cases."""
    unchanged: float = 0.0
    """Of macro F1: upper end of the labelled interval of a child that changes no answer."""
    images: int = 0
    """That decide: the labelled ones, or all."""
    groups: int | None = None
    """In which these images lie; None where each is one of its own."""
    rarest: str = ""
    """Of macro F1: the class of which fewest images have a label, and how many: 6 images of class '2c'."""


@dataclass(frozen=True)
class DropReport:
    """Of both kinds."""

    top1: DropEvidence
    macro_f1: DropEvidence


def route_by(labels_N: NDArray[np.int64]) -> Route:
    """Return what decides about images with these labels, -1 for none."""
    labelled = int((labels_N >= 0).sum())
    return "labels" if labelled >= FEW_LABELS or labelled == len(labels_N) else "answers"


def losses(
    reference_NC: NDArray[np.float32],
    child_NC: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    candidates: int = 1,
    groups_N: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
) -> DropReport:
    """Return what a child's logits lose against a reference's on the same images; label -1: none.

    `candidates`: children that are compared with the reference at once, this one among them. `groups_N`: group of each
    image; intervals count groups where these hold several images (winnow/evaluation/effective_sample_size.py).
    `classes`: names, for reasons.
    """
    reference_N, child_N = (logits_NC.argmax(1).astype(np.int64) for logits_NC in (reference_NC, child_NC))
    scored_N = labels_N >= 0
    route, confidence = route_by(labels_N), simultaneous_confidence(candidates)
    top1 = macro_f1 = None
    unchanged = 0.0
    labelled_groups_N = None if groups_N is None else groups_N[scored_N]
    if scored_N.any():
        truth, theirs, own = labels_N[scored_N], reference_N[scored_N], child_N[scored_N]
        top1 = paired_drop(theirs == truth, own == truth, confidence, labelled_groups_N)
        macro_f1 = macro_f1_drop(truth, theirs, own, confidence=confidence, groups_N=labelled_groups_N)
        same = macro_f1_drop(truth, truth, truth, confidence=confidence, groups_N=labelled_groups_N)
        unchanged = same.high
    otherwise = disagreement_interval(reference_N, child_N, confidence, groups_N)
    stand_in = macro_f1_drop(reference_N, reference_N, child_N, confidence=confidence, groups_N=groups_N)
    deciding = clusters(labelled_groups_N if route == "labels" else groups_N)
    rarest = _rarest(labels_N[scored_N], classes)
    images = int(scored_N.sum()) if route == "labels" else len(labels_N)
    groups = None if deciding is None else deciding.groups
    return DropReport(
        DropEvidence(top1, otherwise, route, candidates, images=images, groups=groups),
        DropEvidence(macro_f1, stand_in, route, candidates, unchanged, images, groups, rarest),
    )


def _rarest(labels_L: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return the class of which fewest images have a label, among those that occur, and how many have."""
    if not classes or len(labels_L) == 0:
        return ""
    found, counts = np.unique(labels_L, return_counts=True)
    least = int(counts.argmin())
    images = "1 image" if counts[least] == 1 else f"{counts[least]:,} images"
    return f"{images} of class {classes[int(found[least])]!r}"
