"""What is known of a child's loss against a reference: what labels show, and what the answers alone prove.

Labels are dear and images are not. Where two networks give the same answer, neither has lost: the share of images that
get another answer bounds the drop in top-1, whatever the labels would say, and needs none. For macro F1 there is no
such bound (a rare class may hide in a small share), so keeping the reference's answers class by class is a stand-in.
Both hold for images that neither was trained or calibrated on, and as far as
images with a label are a fair draw of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from winnow.intervals import Drop, answered_otherwise, macro_f1_drop, paired_drop


@dataclass(frozen=True)
class Evidence:
    """Of one loss, in points."""

    labelled: Drop | None
    """On the labelled images; None without any."""
    answers: Drop
    """On all images: the share that gets another answer (top-1), or what is lost with the reference's answers as truth
    (macro F1)."""


@dataclass(frozen=True)
class Losses:
    """Of both kinds."""

    top1: Evidence
    macro_f1: Evidence


def losses(reference_NC: NDArray[np.float32], child_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Losses:
    """What a child's logits lose against a reference's on the same images; label -1: none."""
    reference_N, child_N = (logits_NC.argmax(1).astype(np.int64) for logits_NC in (reference_NC, child_NC))
    scored_N = labels_N >= 0
    top1 = macro_f1 = None
    if scored_N.any():
        truth, theirs, own = labels_N[scored_N], reference_N[scored_N], child_N[scored_N]
        top1, macro_f1 = paired_drop(theirs == truth, own == truth), macro_f1_drop(truth, theirs, own)
    return Losses(
        Evidence(top1, answered_otherwise(reference_N, child_N)),
        Evidence(macro_f1, macro_f1_drop(reference_N, reference_N, child_N)),
    )
