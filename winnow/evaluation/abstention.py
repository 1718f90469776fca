"""Abstention: how many images are answered above a confidence threshold, and how many of those correctly.

`winnow predict --abstain-below 0.8` gives no class that is less likely than 0.8. Its value depends on how well the
probabilities are calibrated, which the test split shows, since it was used for no decision. Counts are for every
threshold from 0.00 to 1.00.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.evaluation.intervals import proportion_interval
from winnow.evaluation.metrics import softmax
from winnow.records.report import AbstentionCounts

THRESHOLD_STEPS = 100
"""Steps of the threshold between 0 and 1."""
TABLE_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds shown in tables."""
WARNING_THRESHOLD = 0.8
"""Confidence above which accuracy must not be lower than the confidence; else a warning is given."""


def abstention_counts(
    logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64], temperature: float
) -> AbstentionCounts:
    """Return the answered and the correct images for each threshold from 0.00 to 1.00."""
    probabilities_NC = softmax(logits_NC, temperature)
    confidence_N, is_correct_N = probabilities_NC.max(1), logits_NC.argmax(1) == labels_N
    answered = [confidence_N >= step / THRESHOLD_STEPS for step in range(THRESHOLD_STEPS + 1)]
    return AbstentionCounts(
        images=len(labels_N),
        answered=[int(answered_N.sum()) for answered_N in answered],
        right=[int((answered_N & is_correct_N).sum()) for answered_N in answered],
    )


def counts_at_threshold(counts: AbstentionCounts, threshold: float) -> tuple[int, int]:
    """Return the numbers of answered and of correct images at a threshold, rounded down to a hundredth."""
    step = min(THRESHOLD_STEPS, int(threshold * THRESHOLD_STEPS + 1e-9))
    return counts.answered[step], counts.right[step]


def describe_counts(counts: AbstentionCounts, threshold: float, split: str) -> str:
    """Return the counts at a threshold as text: "921 of 1,539 test images answered, 64.0 % of them correctly"."""
    answered, right = counts_at_threshold(counts, threshold)
    start = f"{answered:,} of {counts.images:,} {split} images answered"
    return f"{start}, {right / answered * 100:.1f} % of them correctly" if answered else start


def overconfidence_warnings(
    name: str,
    logits_NC: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    temperature: float,
    groups_N: NDArray[np.int64] | None = None,
) -> list[str]:
    """Return a warning if predictions above WARNING_THRESHOLD are significantly less often correct; else none."""
    is_sure_N = softmax(logits_NC, temperature).max(1) >= WARNING_THRESHOLD
    if not is_sure_N.any():
        return []
    correct_S = (logits_NC.argmax(1) == labels_N)[is_sure_N]
    low, high = proportion_interval(correct_S, None if groups_N is None else groups_N[is_sure_N])
    if high >= WARNING_THRESHOLD:
        return []
    interval = f"95 % interval {low * 100:.1f} to {high * 100:.1f}"
    return [
        f"probabilities are overconfident: {name} predicts {len(correct_S):,} of {len(labels_N):,} test images with "
        f"{WARNING_THRESHOLD:.0%} confidence or more, and {correct_S.mean() * 100:.1f} % of these are correct "
        f"({interval}); winnow predict --abstain-below leaves more wrong predictions than its threshold suggests"
    ]
