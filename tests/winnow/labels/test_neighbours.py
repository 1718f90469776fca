from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from winnow.data.dataset import ImageSet
from winnow.evaluation.unit_vectors import centred_unit_vectors
from winnow.labels.neighbours import FENCE, MIN_COSINE, contradicting_duplicates, outlier_scores, same_picture


def re_encoded(image_HWC: np.ndarray) -> np.ndarray:
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, "JPEG", quality=60)
    return np.asarray(Image.open(content))


@pytest.fixture
def photographs() -> np.ndarray:
    """60 pictures of random smooth shapes, uint8 (60, 32, 32, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (60, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small])


def test_copies_re_encoded_and_mirrored_are_the_same_picture(photographs: np.ndarray) -> None:
    images_NHWC = np.concatenate([photographs, [re_encoded(photographs[0])], photographs[1:2, :, ::-1]])
    first_P, second_P = np.array([0, 1, 0, 2, 3]), np.array([60, 61, 1, 2, 4])
    assert same_picture(images_NHWC, first_P, second_P).tolist() == [True, True, False, True, False]
    assert same_picture(images_NHWC, first_P[:0], second_P[:0]).tolist() == []


def test_planted_duplicates_of_another_label_are_found_and_all_others_are_not(photographs: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    features_LD = np.maximum(rng.normal(0, 1, (62, 24)), 0).astype(np.float32)
    features_LD[60:] = features_LD[:2] + rng.normal(0, 0.01, (2, 24))
    images_NHWC = np.concatenate([photographs, [re_encoded(photographs[0])], photographs[1:2]])
    labels_L = np.arange(62) % 2
    labels_L[60], labels_L[61] = 1, 1  # 0 has label 0: a contradiction; 1 has label 1: none
    twin_L, cosine_L = contradicting_duplicates(features_LD, labels_L, images_NHWC, np.arange(62))
    assert {int(position): int(twin_L[position]) for position in np.flatnonzero(twin_L >= 0)} == {0: 60, 60: 0}
    unit_LD = centred_unit_vectors(features_LD)
    assert cosine_L[0] == cosine_L[60] == pytest.approx(float(unit_LD[0] @ unit_LD[60]), abs=1e-4)


def test_both_features_and_pixels_must_agree(photographs: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    features_LD = rng.normal(0, 1, (60, 24)).astype(np.float32)
    labels_L = np.arange(60) % 2
    same_pixels = photographs.copy()
    same_pixels[1] = same_pixels[0]
    assert (centred_unit_vectors(features_LD) @ centred_unit_vectors(features_LD).T)[0, 1] < MIN_COSINE
    assert (contradicting_duplicates(features_LD, labels_L, same_pixels, np.arange(60))[0] == -1).all()
    features_LD[1] = features_LD[0]
    assert (contradicting_duplicates(features_LD, labels_L, photographs, np.arange(60))[0] == -1).all()
    assert contradicting_duplicates(features_LD, labels_L, same_pixels, np.arange(60))[0][:2].tolist() == [1, 0]


def test_images_of_the_data_set_are_found_by_their_index(photographs: np.ndarray) -> None:
    indices_L, labels_L = np.array([7, 30, 59]), np.array([0, 1, 1])
    features_LD = np.array([[1, 0, 0], [1, 0, 0.01], [-1, 1, 1]], dtype=np.float32)
    images_NHWC = photographs.copy()
    images_NHWC[30] = images_NHWC[7]
    assert contradicting_duplicates(features_LD, labels_L, images_NHWC, indices_L)[0].tolist() == [1, 0, -1]
    assert contradicting_duplicates(features_LD[:1], labels_L[:1], images_NHWC, indices_L[:1])[0].tolist() == [-1]


def test_an_outlier_lies_beyond_the_fence() -> None:
    features_LD = np.random.default_rng(0).normal(0, 1, (100, 6)).astype(np.float32)
    assert (outlier_scores(features_LD) == 0).all()
    features_LD[40] = 9
    score_L = outlier_scores(features_LD)
    assert np.flatnonzero(score_L).tolist() == [40]
    standard_LD = (features_LD - features_LD.mean(0)) / features_LD.std(0)
    fifth_L = np.sort(np.linalg.norm(standard_LD[:, None] - standard_LD[None], axis=2), axis=1)[:, 5]
    lower, upper = np.quantile(np.log(fifth_L), [0.25, 0.75])
    fence = np.exp(upper + FENCE * (upper - lower))
    assert fence < 0.7 * fifth_L[40]
    assert score_L[40] == pytest.approx(1 - fence / fifth_L[40], rel=1e-4)


def test_the_scale_of_a_feature_does_not_matter_and_constant_ones_are_harmless() -> None:
    features_LD = np.random.default_rng(0).normal(0, 1, (100, 6)).astype(np.float32)
    features_LD[40] = 9
    other_LD = np.concatenate([features_LD * [1, 10, 100, 1, 1, 1], np.full((100, 2), 5.0)], axis=1).astype(np.float32)
    np.testing.assert_allclose(outlier_scores(other_LD), outlier_scores(features_LD), atol=1e-4)


def test_few_images_have_no_outliers(tiny_set: ImageSet) -> None:
    assert outlier_scores(np.eye(19, dtype=np.float32)).tolist() == [0] * 19
    assert outlier_scores(np.zeros((0, 4), dtype=np.float32)).tolist() == []
    assert (outlier_scores(np.ones((30, 4), dtype=np.float32)) == 0).all()
