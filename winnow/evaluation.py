"""How good a network or a file is: quality on labelled images, agreement between two of them, and honest intervals.

Everything works on logits (N, C) that were computed once (winnow/inference.py). Proportions carry Wilson's interval; a
child is compared with its reference on the same images (Tango's score interval), and arms are compared over paired
label seeds (Student's t). Which split is read is the caller's business.

Sources: Wilson 1927 (JASA 22); Tango 1998 (Statistics in Medicine 17); calibration: Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.images import VALIDATION, ImageSet
from winnow.errors import ArtifactError, MissingExtra

Z95 = statistics.NormalDist().inv_cdf(0.975)
CALIBRATION_BINS = 15
BISECTIONS = 60
LOGITS = "validation_logits.npy"
"""What a candidate's file answered to the validation images, in its folder."""


@dataclass(frozen=True)
class Drop:
    """Points of top-1 that a child lost against its reference, with the ends of the 95 % interval."""

    points: float
    """Positive where the child is worse."""
    low: float
    high: float


def load_logits(folder: Path, images: ImageSet, file: str = LOGITS) -> NDArray[np.float32]:
    """A candidate's answers (V, C) to all validation images, in the order of the data set.

    Raises ArtifactError when the file is missing, damaged or of other data.
    """
    path = folder / file
    try:
        logits_VC: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}); delete {folder} and run winnow again") from error
    if logits_VC.shape != (len(images.indices(VALIDATION)), len(images.classes)):
        raise ArtifactError(f"{path} belongs to other data; delete {folder} and run winnow again")
    return logits_VC


def served_file(row: Mapping[str, Any]) -> str:
    """The benchmark's file of what a candidate answers in the runtime and precision of one of its rows."""
    return f"{row['candidate']}-{row['runtime']}-{row['precision']}.npy"


def quality(
    logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics (fractions) and details of logits on labelled images; empty where there are none.

    Macro figures are means over the classes that occur. `reliability` holds the bins of the calibration error.
    """
    if len(labels_N) == 0:
        return {}, {}
    if logits_NC.shape != (len(labels_N), len(classes)):
        raise ValueError(f"logits {logits_NC.shape} for {len(labels_N)} labels of {len(classes)} classes")
    try:
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    answers_N = logits_NC.argmax(1)
    numbers = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels_N, answers_N, labels=numbers, zero_division=0
    )
    present = support > 0
    right = int((answers_N == labels_N).sum())
    low, high = wilson_interval(right, len(labels_N))
    ece, bins = calibration(logits_NC, labels_N)
    metrics = {
        "quality/top1": right / len(labels_N),
        "quality/top1_low": low,
        "quality/top1_high": high,
        "quality/macro_precision": float(precision[present].mean()),
        "quality/macro_recall": float(recall[present].mean()),
        "quality/macro_f1": float(f1[present].mean()),
        "quality/ece": ece,
    }
    rows = zip(classes, precision, recall, f1, support, strict=True)
    details = {
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in rows
        },
        "confusion": confusion_matrix(labels_N, answers_N, labels=numbers).tolist(),
        "reliability": bins,
    }
    return metrics, details


def calibration(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error over equal bins of confidence, and the bins that hold an image."""
    probabilities_NC = softmax(logits_NC)
    confidence_N = probabilities_NC.max(1)
    right_N = logits_NC.argmax(1) == labels_N
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for index in range(CALIBRATION_BINS):
        inside_N = bin_N == index
        if not inside_N.any():
            continue
        accuracy, confidence = float(right_N[inside_N].mean()), float(confidence_N[inside_N].mean())
        error += float(inside_N.mean()) * abs(accuracy - confidence)
        bins.append({"confidence": confidence, "accuracy": accuracy, "count": int(inside_N.sum())})
    return error, bins


def softmax(logits_NC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities (N, C) in float64."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True)
    exponentials_NC = np.exp(shifted_NC)
    probabilities_NC: NDArray[np.float64] = exponentials_NC / exponentials_NC.sum(1, keepdims=True)
    return probabilities_NC


def agreement(first_NC: NDArray[np.float32], second_NC: NDArray[np.float32]) -> float:
    """Share of images on which both name the same class."""
    if first_NC.shape != second_NC.shape or len(first_NC) == 0:
        raise ValueError(f"agreement needs two equal tables of logits, got {first_NC.shape} and {second_NC.shape}")
    return float((first_NC.argmax(1) == second_NC.argmax(1)).mean())


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion, as fractions."""
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count} is no proportion")
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * ((share * (1 - share) / count + z2 / (4 * count**2)) ** 0.5)
    # None and all right have exact ends, which rounding misses by a hair.
    return 0.0 if right == 0 else centre - half, 1.0 if right == count else centre + half


def paired_drop(reference_right_N: NDArray[np.bool_], child_right_N: NDArray[np.bool_]) -> Drop:
    """Points lost by the child on the same images, with Tango's score interval.

    Also right where few images differ: with none of 30 different the ends are +-11 points, not 0.
    """
    if len(reference_right_N) != len(child_right_N) or len(child_right_N) == 0:
        raise ValueError("a paired comparison needs the same images, at least one, for both")
    count = len(child_right_N)
    lost = int((reference_right_N & ~child_right_N).sum())
    won = int((child_right_N & ~reference_right_N).sum())
    low, high = (_tango_end(lost, won, count, sign) * 100 for sign in (1, -1))
    return Drop((lost - won) / count * 100, low, high)


def least_worst_end(count: int) -> float:
    """Points of loss that `count` images cannot rule out even for a child that answers all of them alike."""
    return Z95**2 / (count + Z95**2) * 100


def _tango_end(lost: int, won: int, count: int, sign: int) -> float:
    """The difference at which the score statistic is +z (the lower end) or -z; it falls with the difference."""
    below, above = -1.0, 1.0
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        if _tango_score(lost, won, count, middle) > sign * Z95:
            below = middle
        else:
            above = middle
    return above if sign > 0 else below


def _tango_score(lost: int, won: int, count: int, difference: float) -> float:
    """Standardised distance of the observed difference from a supposed one (Tango 1998, equation 8)."""
    linear = -lost - won + (2 * count - lost + won) * difference
    constant = -won * difference * (1 - difference)
    share_won = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    variance = count * (2 * share_won + difference * (1 - difference))
    distance = lost - won - count * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def paired_gain(treated: Sequence[float], control: Sequence[float]) -> tuple[float, float, float]:
    """Mean of treated - control in points, and the ends of Student's 95 % interval over the pairs.

    Accuracies are fractions. A single pair has no spread: both ends are then the mean, and callers say how many pairs
    there were.
    """
    if len(treated) != len(control) or not treated:
        raise ValueError(f"{len(treated)} and {len(control)} runs do not pair")
    gains = [(a - b) * 100 for a, b in zip(treated, control, strict=True)]
    mean = statistics.fmean(gains)
    if len(gains) == 1:
        return mean, mean, mean
    try:
        from scipy.stats import t
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy", "report") from error
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    return mean, mean - half, mean + half
