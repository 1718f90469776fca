"""Quality metrics on labelled images, calibration, and agreement of two networks.

All functions take logits (N, C) that were computed once (winnow/deploy/batch_inference.py). The caller selects the
split; confidence intervals are in winnow/evaluation/intervals.py.

Calibration: Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import VALIDATION, ImageSet
from winnow.errors import ArtifactError, MissingExtra
from winnow.evaluation.intervals import proportion_interval
from winnow.records.benchmark import BenchmarkRow
from winnow.records.candidate_file import ClassDetails, ClassScores, ReliabilityBin

CALIBRATION_BINS = 15
LOG_TEMPERATURES = (-3.0, 3.0)
VALIDATION_LOGITS = "validation_logits.npy"
"""File name of the validation logits in a candidate's folder."""


def correct_predictions(logits: Mapping[str, NDArray[np.float32]], images: ImageSet) -> dict[str, NDArray[np.bool_]]:
    """Return name -> True where correct, for each labelled validation image; empty without labels."""
    labels_V = images.labels_N[images.indices(VALIDATION)]
    scored_V = labels_V >= 0
    if not scored_V.any():
        return {}
    return {name: logits_VC[scored_V].argmax(1) == labels_V[scored_V] for name, logits_VC in logits.items()}


def load_logits(folder: Path, images: ImageSet, file: str = VALIDATION_LOGITS) -> NDArray[np.float32]:
    """Return a candidate's logits (V, C) for all validation images, in the order of the data set.

    Raises ArtifactError if the file is missing, damaged or of other data.
    """
    path = folder / file
    try:
        logits_VC: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}); delete {folder} and run winnow again") from error
    if logits_VC.shape != (len(images.indices(VALIDATION)), len(images.classes)):
        raise ArtifactError(f"{path} belongs to other data; delete {folder} and run winnow again")
    return logits_VC


def benchmark_logits_file(row: BenchmarkRow) -> str:
    """Return the name of the benchmark's file of logits for the runtime and precision of a benchmark row.

    OpenVINO's two modes compute the same, so they share a file.
    """
    return f"{row.candidate}-{row.runtime.removesuffix('-throughput')}-{row.precision}.npy"


def drop_metrics_on_test(baseline: str) -> tuple[str, str, str]:
    """Return the metric names of the winner's drop on the test split and of the ends of its interval, in points."""
    start = f"test/drop_from_{baseline}"
    return f"{start}_points", f"{start}_low", f"{start}_high"


def quality_metrics(
    logits_NC: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    classes: Sequence[str],
    groups_N: NDArray[np.int64] | None = None,
) -> tuple[dict[str, float], ClassDetails]:
    """Return metrics (fractions) and details of logits on labelled images; empty without images.

    `groups_N`: group of each image, used for the interval of top-1.
    Macro metrics are means over the classes that occur. `reliability` holds the bins of the calibration error.
    """
    if len(labels_N) == 0:
        return {}, ClassDetails()
    if logits_NC.shape != (len(labels_N), len(classes)):
        raise ValueError(f"logits {logits_NC.shape} for {len(labels_N)} labels of {len(classes)} classes")
    try:
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    predictions_N = logits_NC.argmax(1)
    numbers = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels_N, predictions_N, labels=numbers, zero_division=0
    )
    present = support > 0
    is_correct_N = predictions_N == labels_N
    low, high = proportion_interval(is_correct_N, groups_N)
    ece, bins = calibration(logits_NC, labels_N)
    metrics = {
        "quality/top1": float(is_correct_N.mean()),
        "quality/top1_low": low,
        "quality/top1_high": high,
        "quality/macro_precision": float(precision[present].mean()),
        "quality/macro_recall": float(recall[present].mean()),
        "quality/macro_f1": float(f1[present].mean()),
        "quality/ece": ece,
    }
    rows = zip(classes, precision, recall, f1, support, strict=True)
    details = ClassDetails(
        per_class={name: ClassScores(precision=p, recall=r, f1=f, support=n) for name, p, r, f, n in rows},
        confusion=confusion_matrix(labels_N, predictions_N, labels=numbers).tolist(),
        reliability=bins,
    )
    return metrics, details


def calibration(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> tuple[float, list[ReliabilityBin]]:
    """Return the expected calibration error over equal bins of confidence, and the non-empty bins."""
    probabilities_NC = softmax(logits_NC)
    confidence_N = probabilities_NC.max(1)
    is_correct_N = logits_NC.argmax(1) == labels_N
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for index in range(CALIBRATION_BINS):
        in_bin_N = bin_N == index
        if not in_bin_N.any():
            continue
        accuracy, confidence = float(is_correct_N[in_bin_N].mean()), float(confidence_N[in_bin_N].mean())
        error += float(in_bin_N.mean()) * abs(accuracy - confidence)
        bins.append(ReliabilityBin(confidence=confidence, accuracy=accuracy, count=int(in_bin_N.sum())))
    return error, bins


def fit_temperature(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """Return the temperature for which softmax(logits / temperature) has the smallest mean log loss.

    One imaginary label, spread over all classes, is added (after Platt 1999), so that a few images that are all correct
    do not give an extreme temperature. Returns 1 without labels.
    """
    if len(labels_N) == 0:
        return 1.0
    try:
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax
    except ModuleNotFoundError as error:
        raise MissingExtra("scipy", "report") from error
    count, logits = len(labels_N), logits_NC.astype(np.float64)

    def loss(log_temperature: float) -> float:
        log_probabilities_NC = log_softmax(logits / np.exp(log_temperature), axis=1)
        mean_log_likelihood = log_probabilities_NC[np.arange(count), labels_N].mean()
        return -float((count * mean_log_likelihood + log_probabilities_NC.mean()) / (count + 1))

    result = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded")
    return float(np.exp(result.x))


def temperature_metrics(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> dict[str, float]:
    """Return the fitted temperature, and the calibration error, each half scaled by the other half's temperature."""
    halves = (np.arange(len(labels_N)) % 2 == 0, np.arange(len(labels_N)) % 2 == 1)
    metrics = {"quality/temperature": fit_temperature(logits_NC, labels_N)}
    if len(labels_N) >= 2:
        scaled_NC = np.empty_like(logits_NC)
        for own, other in (halves, halves[::-1]):
            scaled_NC[own] = logits_NC[own] / fit_temperature(logits_NC[other], labels_N[other])
        metrics["quality/ece_calibrated"] = calibration(scaled_NC, labels_N)[0]
    return metrics


def softmax(logits_NC: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities (N, C) in float64."""
    scaled_NC = logits_NC.astype(np.float64) / temperature
    exponentials_NC = np.exp(scaled_NC - scaled_NC.max(1, keepdims=True))
    probabilities_NC: NDArray[np.float64] = exponentials_NC / exponentials_NC.sum(1, keepdims=True)
    return probabilities_NC


def agreement(first_NC: NDArray[np.float32], second_NC: NDArray[np.float32]) -> float:
    """Return the share of images for which both predict the same class."""
    if first_NC.shape != second_NC.shape or len(first_NC) == 0:
        raise ValueError(
            f"agreement needs logits of the same shape, not empty; got {first_NC.shape}, {second_NC.shape}"
        )
    return float((first_NC.argmax(1) == second_NC.argmax(1)).mean())


def cohens_kappa(first_N: NDArray[np.int64], second_N: NDArray[np.int64]) -> float:
    """Return the chance-corrected agreement of two sets of predictions: 1 if equal, 0 at chance level.

    Cohen 1960 (Educational and Psychological Measurement 20). Returns 1 if both always predict the same single class.
    """
    if len(first_N) != len(second_N) or len(first_N) == 0:
        raise ValueError(f"kappa needs the same number of images, at least one; got {len(first_N)} and {len(second_N)}")
    classes = int(max(first_N.max(), second_N.max())) + 1
    shares_2C = [np.bincount(classes_N, minlength=classes) / len(classes_N) for classes_N in (first_N, second_N)]
    observed, by_chance = float((first_N == second_N).mean()), float((shares_2C[0] * shares_2C[1]).sum())
    return 1.0 if by_chance >= 1 else (observed - by_chance) / (1 - by_chance)
