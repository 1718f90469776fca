from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.conftest import CLASSES
from winnow.config import Propagation
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet
from winnow.data.splits import LEFT_OUT, draw_label_budget
from winnow.deploy.batch_inference import predict_torch
from winnow.deploy.teacher_embeddings import TeacherTargets
from winnow.evaluation.metrics import softmax
from winnow.models.backbones import Architecture, build_model
from winnow.training.pseudo_labels import UnlabelledInputs, network_pseudo_labels, teacher_pseudo_labels

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


def make_inputs(
    images: ImageSet, embeddings_ND: np.ndarray, per_class: int, pool: np.ndarray | None = None
) -> UnlabelledInputs:
    budget = draw_label_budget(images, per_class, 0)
    teacher = TeacherTargets(embeddings_ND, np.nanmean(embeddings_ND[images.indices(TRAIN)].astype(np.float32), axis=0))
    return UnlabelledInputs(images, budget, images.indices(TRAIN) if pool is None else pool, 0, teacher)


def pseudo_labels(inputs: UnlabelledInputs) -> np.ndarray:
    assert inputs.teacher is not None
    return teacher_pseudo_labels(SETTINGS, inputs, inputs.teacher)


@pytest.mark.parametrize("noise", [0.5, 2.0, 4.0])
def test_pseudo_labels_are_as_confident_as_they_are_right(many_images: ImageSet, noise: float) -> None:
    inputs = make_inputs(many_images, embeddings(many_images.labels_N, noise), 40)
    probabilities_NC = pseudo_labels(inputs)
    others = np.setdiff1d(many_images.indices(TRAIN), inputs.budget)
    right = float((probabilities_NC[others].argmax(1) == many_images.labels_N[others]).mean())
    assert right > 0.4
    assert float(probabilities_NC[others].max(1).mean()) == pytest.approx(right, abs=0.08)


def test_test_images_and_those_left_out_are_not_used(many_images: ImageSet) -> None:
    embeddings_ND = embeddings(many_images.labels_N, 0.5)
    many_images.split_N[:50] = LEFT_OUT
    unused_N = np.isin(many_images.split_N, (TEST, LEFT_OUT))
    embeddings_ND[unused_N] = np.nan
    probabilities_NC = pseudo_labels(make_inputs(many_images, embeddings_ND, 4))
    assert (probabilities_NC[unused_N] == 0).all()
    np.testing.assert_allclose(probabilities_NC[~unused_N].sum(1), 1, atol=1e-5)


def test_validation_images_change_no_pseudo_label_of_others(many_images: ImageSet) -> None:
    many_images.split_N[:100] = VALIDATION
    train = many_images.indices(TRAIN)
    embeddings_ND = embeddings(many_images.labels_N, 2.0)
    before_NC = pseudo_labels(make_inputs(many_images, embeddings_ND, 10))
    embeddings_ND[:100] = embeddings_ND[train[0]]
    after_NC = pseudo_labels(make_inputs(many_images, embeddings_ND, 10))
    np.testing.assert_allclose(after_NC[train], before_NC[train], atol=1e-5)
    assert not np.allclose(after_NC[:100], before_NC[:100])


def test_one_label_per_class_is_enough(many_images: ImageSet) -> None:
    probabilities_NC = pseudo_labels(make_inputs(many_images, embeddings(many_images.labels_N, 0.3), 1))
    train = many_images.indices(TRAIN)
    assert (probabilities_NC[train].argmax(1) == many_images.labels_N[train]).mean() > 0.95


def test_labels_of_one_group_are_held_out_together(many_images: ImageSet) -> None:
    """Copies in one group would otherwise say that predictions are always right."""
    embeddings_ND = embeddings(many_images.labels_N, 4.0)
    budget = draw_label_budget(many_images, 40, 0)
    groups_N = np.arange(len(many_images.labels_N))
    order = budget[np.argsort(many_images.labels_N[budget], kind="stable")]
    first, second = order[0::2], order[1::2]  # pairs of one class
    embeddings_ND[second], groups_N[second] = embeddings_ND[first], groups_N[first]
    others = np.setdiff1d(many_images.indices(TRAIN), budget)
    confidence = {}
    for name, images in (("grouped", make_images(groups_N)), ("apart", many_images)):
        inputs = dataclasses.replace(make_inputs(many_images, embeddings_ND, 40), images=images)
        confidence[name] = float(pseudo_labels(inputs)[others].max(1).mean())
    assert confidence["grouped"] < confidence["apart"]


def test_a_network_gives_pseudo_labels_without_a_teacher(tiny_set: ImageSet) -> None:
    model = build_model(Architecture(backbone="resnet8", num_classes=len(CLASSES), image_size=16, width=0.2)).eval()
    budget = draw_label_budget(tiny_set, 4, 0)
    inputs = UnlabelledInputs(tiny_set, budget, tiny_set.indices(TRAIN), 0, None)
    selected = np.sort(np.concatenate([tiny_set.indices(TRAIN), tiny_set.indices(VALIDATION)]))
    own_MC = softmax(predict_torch(model, tiny_set.images_NHWC, selected))
    alone = network_pseudo_labels(SETTINGS.model_copy(update={"share": 0.0}), inputs, model)
    np.testing.assert_allclose(alone[selected], own_MC, atol=1e-5)
    spread_NC = network_pseudo_labels(SETTINGS, inputs, model)
    assert not np.allclose(spread_NC[selected], own_MC, atol=1e-3)
    np.testing.assert_allclose(spread_NC[selected].sum(1), 1, atol=1e-5)
    assert (spread_NC[tiny_set.split_N == TEST] == 0).all()
