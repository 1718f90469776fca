from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from winnow.data.dataset import ImageSet
from winnow.errors import DataError
from winnow.labels.label_errors import (
    CheckedImages,
    check_labels,
    confident_joint,
    out_of_fold_probabilities,
)


@pytest.fixture
def checked(tiny_set: ImageSet) -> CheckedImages:
    """180 images in three clusters, with one class each; all images have different pixels."""
    rng = np.random.default_rng(0)
    labels_L = np.arange(180) % 3
    features_LD = (np.eye(8)[labels_L] * 2 + rng.normal(0, 0.4, (180, 8))).astype(np.float32)
    return CheckedImages(features_LD, labels_L, np.arange(180), tiny_set.images_NHWC, np.arange(180), 3)


def with_labels(checked: CheckedImages, labels: dict[int, int]) -> CheckedImages:
    labels_L = checked.labels_L.copy()
    for position, label in labels.items():
        labels_L[position] = label
    return replace(checked, labels_L=labels_L)


def test_the_confident_joint_is_that_of_the_paper() -> None:
    probabilities_LC = np.array(
        [
            [0.9, 0.1, 0.0],  # label 0: reaches threshold 0
            [0.6, 0.3, 0.1],  # label 0: reaches 0.6
            [0.3, 0.7, 0.0],  # label 0: reaches that of class 1 alone
            [0.2, 0.8, 0.0],  # label 1
            [0.6, 0.4, 0.0],  # label 1: reaches that of class 0 alone
            [0.2, 0.3, 0.5],  # label 2
            [0.0, 0.5, 0.5],  # label 2: a tie is of class 2, as 0.5 is below the threshold of class 1
        ]
    )
    labels_L = np.array([0, 0, 0, 1, 1, 2, 2])
    # thresholds: (0.9 + 0.6 + 0.3) / 3 = 0.6, (0.8 + 0.4) / 2 = 0.6, (0.5 + 0.5) / 2 = 0.5
    joint_CC, confident_L = confident_joint(probabilities_LC, labels_L)
    assert joint_CC.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 2]]
    assert confident_L.tolist() == [0, 0, 1, 1, 0, 2, 2]


def test_an_image_that_reaches_no_threshold_is_not_counted() -> None:
    probabilities_LC = np.array([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
    joint_CC, confident_L = confident_joint(probabilities_LC, np.array([0, 0, 1, 1]))
    assert confident_L.tolist() == [0, 1, 1, -1]  # thresholds 0.7 and 0.55; class 2 has no label and no threshold
    assert joint_CC.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="4 rows of probabilities and 3 labels"):
        confident_joint(probabilities_LC, np.array([0, 0, 1]))


def test_planted_label_errors_are_found_with_their_class(checked: CheckedImages) -> None:
    planted = {4: 2, 60: 1, 121: 0, 170: 1}
    check = check_labels(with_labels(checked, planted), folds=5)
    found = {finding.position: finding for finding in check.findings if "label error" in finding.reasons}
    assert set(found) == set(planted)
    assert check.count("label error") == 4
    for position, finding in found.items():
        assert finding.suggested == checked.labels_L[position]
        assert 0.3 < finding.score <= 1
    assert check.agreement > 0.95
    assert check.not_judged == ()


def test_right_labels_are_not_suspicious(checked: CheckedImages) -> None:
    assert check_labels(checked, folds=5).findings == ()


def test_the_same_seed_gives_the_same_findings(checked: CheckedImages) -> None:
    wrong = with_labels(checked, {4: 2, 60: 1})
    assert check_labels(wrong, folds=5, seed=1) == check_labels(wrong, folds=5, seed=1)


def test_findings_are_sorted_by_severity(checked: CheckedImages) -> None:
    features_LD, images_NHWC = checked.features_LD.copy(), np.array(checked.images_NHWC[:180])
    features_LD[9], images_NHWC[9] = features_LD[17], images_NHWC[17]  # a copy of label 2 with label 0
    features_LD[50, 3:] = 40
    wrong = replace(with_labels(checked, {4: 2, 60: 1}), features_LD=features_LD, images_NHWC=images_NHWC)
    findings = check_labels(wrong, folds=5).findings
    assert [finding.position for finding in findings[:2]] == [9, 17]
    assert [finding.twin for finding in findings[:2]] == [17, 9]
    assert [finding.reasons[0] for finding in findings] == [
        "near-duplicate",
        "near-duplicate",
        "label error",
        "label error",
        "outlier",
    ]
    assert findings[2].score >= findings[3].score
    assert findings[0].suggested == 2  # the label of the 59 others around it
    assert findings[1].suggested == -1
    assert (findings[-1].position, findings[-1].suggested) == (50, -1)


def test_probabilities_come_from_other_groups(checked: CheckedImages) -> None:
    groups_L = np.arange(180) // 60  # each of three groups holds all classes
    probabilities_LC = out_of_fold_probabilities(replace(checked, groups_L=groups_L), folds=5, seed=0)
    np.testing.assert_allclose(probabilities_LC.sum(1), 1, atol=1e-6)
    # The labels of one group change: its own probabilities, which come from the other two, stay.
    other = with_labels(checked, {position: int(checked.labels_L[position] + 1) % 3 for position in range(60)})
    again_LC = out_of_fold_probabilities(replace(other, groups_L=groups_L), folds=5, seed=0)
    np.testing.assert_allclose(again_LC[:60], probabilities_LC[:60], atol=1e-6)
    assert not np.allclose(again_LC[60:], probabilities_LC[60:], atol=1e-2)


def test_a_class_in_one_fold_is_not_judged_and_not_suggested(checked: CheckedImages) -> None:
    groups_L = np.where(checked.labels_L == 2, 1000, np.arange(180))  # class 2 is one group
    check = check_labels(replace(with_labels(checked, {4: 0}), groups_L=groups_L), folds=5)
    assert check.not_judged == (2,)
    assert [(finding.position, finding.suggested) for finding in check.findings] == [(4, 1)]


@pytest.mark.parametrize("groups_L", [np.zeros(180, dtype=np.int64), np.arange(180)])
def test_too_few_labels_cannot_be_checked(checked: CheckedImages, groups_L: np.ndarray) -> None:
    labels_L = checked.labels_L if groups_L.max() == 0 else np.zeros(180, dtype=np.int64)
    with pytest.raises(DataError, match=r"180 labels of \d classes in \d+ groups cannot be checked"):
        check_labels(replace(checked, labels_L=labels_L, groups_L=groups_L), folds=5)


def test_one_label_per_class_cannot_be_checked(checked: CheckedImages) -> None:
    first = [int(np.flatnonzero(checked.labels_L == label)[0]) for label in range(3)]
    few = replace(
        checked,
        features_LD=checked.features_LD[first],
        labels_L=checked.labels_L[first],
        groups_L=np.arange(3),
        indices_L=checked.indices_L[first],
    )
    with pytest.raises(DataError, match="3 labels cannot be checked, since no class has two of them"):
        check_labels(few, folds=5)
