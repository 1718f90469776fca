from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from winnow.evaluation.intervals import wilson_interval
from winnow.evaluation.metrics import (
    agreement,
    calibration,
    cohens_kappa,
    fit_temperature,
    quality_metrics,
    softmax,
    temperature_metrics,
)
from winnow.records.candidate_file import ClassDetails

CLASSES = ("a", "b", "c", "d")


def random_logits(count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are mostly right, and labels; the last class never occurs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES) - 1, count)
    logits = rng.normal(size=(count, len(CLASSES))).astype(np.float32)
    logits[np.arange(count), labels] += 1
    return logits, labels


def logits_with(confidence: list[float], predictions: list[int]) -> np.ndarray:
    """Return logits of two classes with this softmax confidence."""
    margin = np.log(np.array(confidence) / (1 - np.array(confidence)))
    logits = np.zeros((len(predictions), 2), np.float32)
    logits[np.arange(len(predictions)), predictions] = margin
    return logits


def test_calibration_error_of_an_example() -> None:
    logits = logits_with([0.95, 0.75, 0.75, 0.55], [0, 1, 1, 0])
    labels = np.array([0, 1, 0, 1])
    error, bins = calibration(logits, labels)
    # A quarter has an error of 5 points, a half 25 points (confidence 0.75, half right), a quarter 55 points.
    assert error == pytest.approx(0.25 * 0.05 + 0.5 * 0.25 + 0.25 * 0.55, abs=1e-6)
    assert [(row.accuracy, row.count) for row in bins] == [(0.0, 1), (0.5, 2), (1.0, 1)]
    assert [row.confidence for row in bins] == pytest.approx([0.55, 0.75, 0.95])


def test_calibration_error_is_zero_for_calibrated_confidence() -> None:
    logits = logits_with([0.8] * 10 + [1 - 1e-12] * 5, [0] * 15)
    assert calibration(logits, np.array([0] * 8 + [1] * 2 + [0] * 5))[0] == pytest.approx(0, abs=1e-6)


def test_softmax_is_a_distribution_and_shift_invariant() -> None:
    logits, _ = random_logits()
    np.testing.assert_allclose(softmax(logits).sum(1), 1)
    np.testing.assert_allclose(softmax(logits + np.float32(1000)), softmax(logits), atol=1e-4)


def test_quality_equals_scikit_learn() -> None:
    logits, labels = random_logits()
    predictions = logits.argmax(1)
    metrics, details = quality_metrics(logits, labels, CLASSES)
    present = sorted(set(labels))
    options = {"average": "macro", "labels": present, "zero_division": 0}
    assert metrics["quality/top1"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["quality/macro_precision"] == pytest.approx(precision_score(labels, predictions, **options))
    assert metrics["quality/macro_recall"] == pytest.approx(recall_score(labels, predictions, **options))
    assert metrics["quality/macro_f1"] == pytest.approx(f1_score(labels, predictions, **options))
    assert metrics["quality/ece"] == calibration(logits, labels)[0]
    correct = int((labels == predictions).sum())
    assert (metrics["quality/top1_low"], metrics["quality/top1_high"]) == wilson_interval(correct, len(labels))
    assert details.confusion == confusion_matrix(labels, predictions, labels=range(4)).tolist()
    assert list(details.per_class) == list(CLASSES)
    assert details.per_class["d"].support == 0
    assert sum(row.count for row in details.reliability) == len(labels)


def test_quality_without_labels_is_empty() -> None:
    assert quality_metrics(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), CLASSES) == ({}, ClassDetails())


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (2, 3)])
def test_quality_needs_a_row_per_label_and_a_column_per_class(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="for 2 labels of 4 classes"):
        quality_metrics(np.zeros(shape, np.float32), np.zeros(2, np.int64), CLASSES)


@pytest.mark.parametrize("rows", [(0, 0), (2, 3)])
def test_agreement_needs_equal_shapes(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="logits of the same shape"):
        agreement(*(np.zeros((count, 4), np.float32) for count in rows))


def test_agreement_bounds_the_drop() -> None:
    for seed in range(5):
        (first, labels), (second, _) = random_logits(seed=seed), random_logits(seed=seed + 50)
        share = agreement(first, second)
        assert share == agreement(second, first) == (first.argmax(1) == second.argmax(1)).mean()
        drop = (first.argmax(1) == labels).mean() - (second.argmax(1) == labels).mean()
        assert abs(drop) <= 1 - share + 1e-12
    assert agreement(first, first) == 1.0


def calibrated_logits(probabilities_C: np.ndarray, count: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are calibrated at temperature `scale`, and labels drawn from their probabilities."""
    rng = np.random.default_rng(8)
    logits = rng.normal(size=(count, len(probabilities_C))).astype(np.float32) * 2
    labels = np.array([rng.choice(len(probabilities_C), p=row) for row in softmax(logits)])
    return logits * np.float32(scale), labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_of_scaled_logits_is_estimated(scale: float) -> None:
    logits, labels = calibrated_logits(np.ones(4), 4000, scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.08)
    metrics = temperature_metrics(logits, labels)
    assert metrics["quality/temperature"] == fit_temperature(logits, labels)
    assert metrics["quality/ece_calibrated"] < 0.03
    if scale != 1.0:
        assert calibration(logits, labels)[0] > 0.08


def test_few_correct_images_do_not_give_full_confidence() -> None:
    labels = np.arange(12) % 4
    logits = np.eye(4, dtype=np.float32)[labels] * 3
    temperature_12, temperature_2400 = (
        fit_temperature(logits, labels),
        fit_temperature(np.tile(logits, (200, 1)), np.tile(labels, 200)),
    )
    assert np.exp(-3) < temperature_2400 < temperature_12
    assert softmax(logits, temperature_12).max() < 0.99


def test_without_labels_the_temperature_is_one() -> None:
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    assert fit_temperature(*empty) == 1.0
    assert temperature_metrics(*empty) == {"quality/temperature": 1.0}


def test_temperature_keeps_the_prediction_and_changes_the_probability() -> None:
    logits, _ = random_logits()
    high_temperature, low_temperature = softmax(logits, 4.0), softmax(logits, 0.25)
    assert (high_temperature.argmax(1) == low_temperature.argmax(1)).all()
    assert (high_temperature.max(1) <= softmax(logits).max(1)).all()
    assert (softmax(logits).max(1) <= low_temperature.max(1)).all()
    assert softmax(logits * 3, 3.0) == pytest.approx(softmax(logits), abs=1e-6)


def test_kappa_is_agreement_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    second[:300] = first[:300]
    sklearn = pytest.importorskip("sklearn.metrics")
    assert cohens_kappa(first, second) == pytest.approx(sklearn.cohen_kappa_score(first, second))
    assert cohens_kappa(first, first) == 1.0
    assert cohens_kappa(first, np.zeros(500, np.int64)) == pytest.approx(0.0, abs=1e-9)
    assert cohens_kappa(np.ones(5, np.int64), np.ones(5, np.int64)) == 1.0
    with pytest.raises(ValueError, match="kappa needs the same number of images"):
        cohens_kappa(first, second[:-1])
