"""Two-sample tests on handmade answers: what shifted is found, what did not is left alone."""

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


def drawn(
    count: int, seed: int, classes: tuple[float, ...] = (1, 1, 1), shift: float = 0.0, sure: float = 3.0
) -> DriftFeatures:
    """Answers of a model that is `sure`, to images of classes in these shares, whose features are moved by `shift`."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=np.array(classes) / sum(classes))
    embeddings = rng.normal(0, 1, (count, 8)) + np.eye(3, 8)[labels] * 2 + shift
    logits = rng.normal(0, 1, (count, 3)) + np.eye(3)[labels] * sure
    return DriftFeatures(logits.astype(np.float32), embeddings.astype(np.float32))


def real(fresh: DriftFeatures) -> set[str]:
    return {shift.test for shift in run_drift_tests(drawn(600, 0), fresh, SETTINGS) if shift.is_real}


def test_fresh_images_of_the_same_kind_raise_no_alarm() -> None:
    assert real(drawn(400, 1)) == set()


def test_each_shift_is_found_by_its_own_test() -> None:
    assert real(drawn(400, 2, shift=0.7)) == {"embeddings"}
    assert "classes" in real(drawn(400, 3, classes=(3, 1, 1)))
    assert real(drawn(400, 4, sure=1.5)) == {"confidence"}


def test_a_shift_too_small_to_matter_is_not_real_however_many_images_show_it() -> None:
    shifts = run_drift_tests(drawn(20000, 0), drawn(20000, 1, classes=(1.1, 1, 1)), SETTINGS)
    found = {shift.test: shift for shift in shifts}["classes"]
    assert found.p < 1e-3
    assert 0.005 < found.effect < SETTINGS.min_class_shift
    assert not found.is_real


@pytest.mark.thorough
def test_false_alarms_stay_within_what_is_accepted() -> None:
    """200 draws of the same kind: more than 8 alarms at a level of 0.01 would be a chance of one in 4,700."""
    loose = Drift(min_separation=0.0, min_class_shift=0.0, min_confidence_shift=0.0)
    alarms = [
        any(shift.is_real for shift in run_drift_tests(drawn(300, 2 * seed), drawn(150, 2 * seed + 1), loose))
        for seed in range(200)
    ]
    assert sum(alarms) <= 8


@pytest.mark.parametrize(
    ("fresh", "wanted"),
    [
        (drawn(400, 1), "nothing"),
        (drawn(400, 4, sure=1.5), "labels"),
        (drawn(400, 2, shift=0.7), "retrain"),
    ],
)
def test_advice(fresh: DriftFeatures, wanted: str) -> None:
    assert recommend_action(run_drift_tests(drawn(600, 0), fresh, SETTINGS)).wants == wanted


def test_least_sure_images_of_every_class_are_asked_for() -> None:
    answers = drawn(90, 5)
    chosen = select_images_to_label(answers, 6)
    assert len(set(chosen)) == 6
    chances = softmax(answers.logits_NC)
    assert sorted(chances[chosen].argmax(1)) == [0, 0, 1, 1, 2, 2]
    for label in range(3):
        own = np.flatnonzero(chances.argmax(1) == label)
        assert own[chances[own].max(1).argmin()] in chosen


@pytest.mark.thorough
def test_embeddings_of_float_and_int8_files(tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    pixels = np.ascontiguousarray(tiny_set.images_NHWC[tiny_set.indices(VALIDATION)])
    shapes = set()
    for name in ("dense", "dense-int8", "pruned-int8", "student"):
        folder = tiny_candidate(name)
        found = compute_features(folder / "model.onnx", pixels, batch_size=16)
        np.testing.assert_allclose(found.logits_NC, np.load(folder / "validation_logits.npy"), atol=1e-4)
        assert found.embeddings_ND.shape[0] == len(pixels)
        assert found.embeddings_ND.std(0).max() > 0
        shapes.add(found.embeddings_ND.shape[1])
    assert min(shapes) >= 3


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        compute_features(tmp_path / "model.onnx", np.zeros((1, 4, 4, 3), np.uint8))


def test_the_section_may_be_missing_and_is_checked() -> None:
    assert check_config(tiny_params()).drift == Drift()
    with pytest.raises(ConfigError, match=r"drift\.alpha"):
        check_config(tiny_params() | {"drift": {"alpha": 0.0}})
