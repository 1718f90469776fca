"""Check two-sample tests on simulated features: shifts are detected, equal distributions are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import tiny_params
from winnow.config import Drift, check_config
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.drift_tests import (
    DriftFeatures,
    compute_features,
    recommend_action,
    run_drift_tests,
    select_images_to_label,
)
from winnow.errors import ArtifactError, ConfigError
from winnow.evaluation.metrics import softmax

SETTINGS = Drift()


def random_features(
    count: int, seed: int, classes: tuple[float, ...] = (1, 1, 1), shift: float = 0.0, margin: float = 3.0
) -> DriftFeatures:
    """Return features for these class shares; `margin` is added to the true class's logit, `shift` to embeddings."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=np.array(classes) / sum(classes))
    embeddings = rng.normal(0, 1, (count, 8)) + np.eye(3, 8)[labels] * 2 + shift
    logits = rng.normal(0, 1, (count, 3)) + np.eye(3)[labels] * margin
    return DriftFeatures(logits.astype(np.float32), embeddings.astype(np.float32))


def real_shifts(new_features: DriftFeatures) -> set[str]:
    return {shift.test for shift in run_drift_tests(random_features(600, 0), new_features, SETTINGS) if shift.is_real}


def test_new_images_of_the_same_distribution_raise_no_alarm() -> None:
    assert real_shifts(random_features(400, 1)) == set()


def test_each_shift_is_detected_by_its_test() -> None:
    assert real_shifts(random_features(400, 2, shift=0.7)) == {"embeddings"}
    assert "classes" in real_shifts(random_features(400, 3, classes=(3, 1, 1)))
    assert real_shifts(random_features(400, 4, margin=1.5)) == {"confidence"}


def test_a_significant_but_small_shift_is_not_real() -> None:
    shifts = run_drift_tests(random_features(20000, 0), random_features(20000, 1, classes=(1.1, 1, 1)), SETTINGS)
    class_shift = {shift.test: shift for shift in shifts}["classes"]
    assert class_shift.p < 1e-3
    assert 0.005 < class_shift.effect < SETTINGS.min_class_shift
    assert not class_shift.is_real


@pytest.mark.thorough
def test_false_alarms_stay_within_the_level() -> None:
    """Of 200 draws of one distribution, more than 8 alarms at a level of 0.01 have a probability of 1 in 4,700."""
    settings = Drift(min_separation=0.0, min_class_shift=0.0, min_confidence_shift=0.0)
    alarms = [
        any(
            shift.is_real
            for shift in run_drift_tests(random_features(300, 2 * seed), random_features(150, 2 * seed + 1), settings)
        )
        for seed in range(200)
    ]
    assert sum(alarms) <= 8


@pytest.mark.parametrize(
    ("new_features", "expected"),
    [
        (random_features(400, 1), "nothing"),
        (random_features(400, 4, margin=1.5), "labels"),
        (random_features(400, 2, shift=0.7), "retrain"),
    ],
)
def test_recommended_action(new_features: DriftFeatures, expected: str) -> None:
    assert recommend_action(run_drift_tests(random_features(600, 0), new_features, SETTINGS)).wants == expected


def test_the_least_confident_images_of_every_class_are_selected() -> None:
    features = random_features(90, 5)
    selected = select_images_to_label(features, 6)
    assert len(set(selected)) == 6
    probabilities = softmax(features.logits_NC)
    assert sorted(probabilities[selected].argmax(1)) == [0, 0, 1, 1, 2, 2]
    for label in range(3):
        class_indices = np.flatnonzero(probabilities.argmax(1) == label)
        assert class_indices[probabilities[class_indices].max(1).argmin()] in selected


@pytest.mark.thorough
def test_embeddings_of_float_and_int8_files(tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    pixels = np.ascontiguousarray(tiny_set.images_NHWC[tiny_set.indices(VALIDATION)])
    shapes = set()
    for name in ("dense", "dense-int8", "pruned-int8", "student"):
        folder = tiny_candidate(name)
        features = compute_features(folder / "model.onnx", pixels, batch_size=16)
        np.testing.assert_allclose(features.logits_NC, np.load(folder / "validation_logits.npy"), atol=1e-4)
        assert features.embeddings_ND.shape[0] == len(pixels)
        assert features.embeddings_ND.std(0).max() > 0
        shapes.add(features.embeddings_ND.shape[1])
    assert min(shapes) >= 3


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        compute_features(tmp_path / "model.onnx", np.zeros((1, 4, 4, 3), np.uint8))


def test_the_config_section_is_optional_and_checked() -> None:
    assert check_config(tiny_params()).drift == Drift()
    with pytest.raises(ConfigError, match=r"drift\.alpha"):
        check_config(tiny_params() | {"drift": {"alpha": 0.0}})
