"""What a threshold on confidence gives: how many images are answered, and how many of those rightly.

`winnow predict --abstain-below 0.8` names no class that is less likely than 0.8. What that is worth depends on how far
probabilities can be believed, which images that chose nothing tell: those of the test split. Counted for every
threshold from 0.00 to 1.00.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.evaluation.intervals import proportion_interval
from winnow.evaluation.metrics import softmax

STEPS = 100
"""Thresholds between 0 and 1."""
SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds of tables."""
WARNED = 0.8
"""The threshold at which confidence is checked against what was right."""


def abstention(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64], temperature: float) -> dict[str, Any]:
    """Return {images, answered, right}, the last two as numbers of images for each threshold, 0.00 to 1.00."""
    chances_NC = softmax(logits_NC, temperature)
    confidence_N, right_N = chances_NC.max(1), logits_NC.argmax(1) == labels_N
    answered = [confidence_N >= at / STEPS for at in range(STEPS + 1)]
    return {
        "images": len(labels_N),
        "answered": [int(answered_N.sum()) for answered_N in answered],
        "right": [int((answered_N & right_N).sum()) for answered_N in answered],
    }


def at_threshold(counts: Mapping[str, Any], threshold: float) -> tuple[int, int]:
    """Return how many images are answered at a threshold, and how many of them rightly; of the next lower hundredth."""
    at = min(STEPS, int(threshold * STEPS + 1e-9))
    return counts["answered"][at], counts["right"][at]


def describe(counts: Mapping[str, Any], threshold: float, split: str) -> str:
    """Return in words what a threshold gave: "921 of 1,539 test images answered, 64.0 % of them rightly"."""
    answered, right = at_threshold(counts, threshold)
    start = f"{answered:,} of {counts['images']:,} {split} images answered"
    return f"{start}, {right / answered * 100:.1f} % of them rightly" if answered else start


def overconfidence(
    name: str,
    logits_NC: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    temperature: float,
    groups_N: NDArray[np.int64] | None = None,
) -> list[str]:
    """Return the warning that answers of WARNED confidence are right less often than that, where it is shown."""
    is_sure_N = softmax(logits_NC, temperature).max(1) >= WARNED
    if not is_sure_N.any():
        return []
    right_S = (logits_NC.argmax(1) == labels_N)[is_sure_N]
    low, high = proportion_interval(right_S, None if groups_N is None else groups_N[is_sure_N])
    if high >= WARNED:
        return []
    interval = f"95 % interval {low * 100:.1f} to {high * 100:.1f}"
    return [
        f"probabilities promise too much: of the {len(right_S):,} of {len(labels_N):,} test images that {name} answers "
        f"with {WARNED:.0%} confidence or more {right_S.mean() * 100:.1f} % are right ({interval}); "
        "winnow predict --abstain-below leaves more wrong answers than it says"
    ]
