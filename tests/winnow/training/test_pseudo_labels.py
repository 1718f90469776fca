from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import CLASSES
from winnow.config import Propagation
from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.data.splits import draw_label_budget
from winnow.models.backbones import Architecture, build_model
from winnow.training.pseudo_labels import network_answers, teacher_answers

SETTINGS = Propagation(method="propagation")


def embeddings(classes_N: np.ndarray, noise: float) -> np.ndarray:
    """Return an embedding for each image: that of its class, and noise."""
    rng = np.random.default_rng(0)
    of_class_CD = rng.normal(0, 1, (len(CLASSES), 16))
    return (of_class_CD[classes_N] + rng.normal(0, noise, (len(classes_N), 16))).astype(np.float16)


def make_images(groups_N: np.ndarray | None = None) -> ImageSet:
    """Return 1,200 black images with labels, of which 300 are in the test split."""
    count, rng = 1200, np.random.default_rng(3)
    split_N = np.full(count, TRAIN, dtype=np.uint8)
    split_N[-300:] = TEST
    keys_N16 = np.zeros((count, 16), dtype=np.uint8)
    keys_N16[:, :8] = np.arange(count).astype(">i8").view(np.uint8).reshape(count, 8)
    if groups_N is not None:
        keys_N16 = keys_N16[groups_N]
    pixels_NHWC = np.zeros((count, 4, 4, 3), dtype=np.uint8)
    return ImageSet(None, pixels_NHWC, rng.integers(0, len(CLASSES), count), split_N, keys_N16, tuple(CLASSES))


@pytest.fixture
def many_images() -> ImageSet:
    return make_images()


@pytest.mark.parametrize("noise", [0.5, 2.0, 4.0])
def test_answers_are_as_confident_as_they_are_right(many_images: ImageSet, noise: float) -> None:
    budget = draw_label_budget(many_images, 40, 0)
    answers_NC = teacher_answers(SETTINGS, many_images, budget, embeddings(many_images.labels_N, noise), seed=0)
    others = np.setdiff1d(many_images.indices(TRAIN), budget)
    right = float((answers_NC[others].argmax(1) == many_images.labels_N[others]).mean())
    assert right > 0.4
    assert float(answers_NC[others].max(1).mean()) == pytest.approx(right, abs=0.08)


def test_the_test_split_is_left_out(many_images: ImageSet) -> None:
    embeddings_ND = embeddings(many_images.labels_N, 0.5)
    embeddings_ND[many_images.split_N == TEST] = np.nan
    answers_NC = teacher_answers(SETTINGS, many_images, draw_label_budget(many_images, 4, 0), embeddings_ND, seed=0)
    assert (answers_NC[many_images.split_N == TEST] == 0).all()
    np.testing.assert_allclose(answers_NC[many_images.split_N != TEST].sum(1), 1, atol=1e-5)


def test_one_label_per_class_is_enough(many_images: ImageSet) -> None:
    embeddings_ND = embeddings(many_images.labels_N, 0.3)
    answers_NC = teacher_answers(SETTINGS, many_images, draw_label_budget(many_images, 1, 0), embeddings_ND, seed=0)
    train = many_images.indices(TRAIN)
    assert (answers_NC[train].argmax(1) == many_images.labels_N[train]).mean() > 0.95


def test_labels_of_one_group_are_held_out_together(many_images: ImageSet) -> None:
    """Copies in one group would otherwise say that answers are always right."""
    budget = draw_label_budget(many_images, 40, 0)
    embeddings_ND = embeddings(many_images.labels_N, 4.0)
    groups_N = np.arange(len(many_images.labels_N))
    order = budget[np.argsort(many_images.labels_N[budget], kind="stable")]
    first, second = order[0::2], order[1::2]  # pairs of one class
    embeddings_ND[second], groups_N[second] = embeddings_ND[first], groups_N[first]
    others = np.setdiff1d(many_images.indices(TRAIN), budget)
    confidence = {
        name: float(teacher_answers(SETTINGS, images, budget, embeddings_ND, seed=0)[others].max(1).mean())
        for name, images in (("grouped", make_images(groups_N)), ("apart", many_images))
    }
    assert confidence["grouped"] < confidence["apart"]


def test_a_network_gives_answers_without_a_teacher(tiny_set: ImageSet) -> None:
    model = build_model(Architecture(backbone="resnet8", num_classes=len(CLASSES), image_size=16, width=0.2))
    answers_NC = network_answers(SETTINGS, tiny_set, model, seed=0)
    assert (answers_NC[tiny_set.split_N == TEST] == 0).all()
    np.testing.assert_allclose(answers_NC[tiny_set.split_N != TEST].sum(1), 1, atol=1e-5)
