from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from tests.conftest import CLASSES, tiny_params
from winnow.config import FixMatch, Propagation, UnlabelledTraining, check_config
from winnow.config.unlabelled import Unlabelled
from winnow.data.dataset import TEST, TRAIN, ImageSet
from winnow.data.splits import draw_label_budget
from winnow.deploy.teacher_embeddings import TeacherTargets
from winnow.models.backbones import Architecture, build_model
from winnow.training import unlabelled_images
from winnow.training.checkpoint import Checkpoint
from winnow.training.finetuning import validation_top1
from winnow.training.pseudo_labels import UnlabelledInputs
from winnow.training.unlabelled_images import METHODS, UnlabelledTrainer, train_on_unlabelled, unlabelled_training

SMALL = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2)


def settings(method: str, **changes: Any) -> UnlabelledTraining:
    raw = {"method": method, "epochs": 2, "min_steps": 12, "batch_size": 16, **changes}
    return TypeAdapter(Unlabelled).validate_python(raw)


def teacher_embeddings(images: ImageSet) -> TeacherTargets:
    """Return embeddings that tell the classes apart, NaN for the test split."""
    rng = np.random.default_rng(0)
    classes_N = np.arange(len(images.labels_N)) % len(CLASSES)
    rows_ND = (np.eye(3)[classes_N] @ rng.normal(0, 1, (3, 8)) + rng.normal(0, 0.1, (len(classes_N), 8))).astype(
        np.float16
    )
    rows_ND[images.split_N == TEST] = np.nan
    return TeacherTargets(rows_ND, np.nanmean(rows_ND.astype(np.float32), axis=0))


def make_inputs(images: ImageSet, *, with_teacher: bool = True, seed: int = 0) -> UnlabelledInputs:
    budget = draw_label_budget(images, 4, 0)
    teacher = teacher_embeddings(images) if with_teacher else None
    return UnlabelledInputs(images, budget, images.indices(TRAIN), seed, teacher)


def test_nothing_follows_where_every_training_image_has_a_label(
    tiny_set: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = tiny_params()
    params["finetune"]["unlabelled"] = "fixmatch"
    assert unlabelled_training(check_config(params), tiny_set, None) is not None
    labelled = dataclasses.replace(tiny_set, labels_N=np.where(tiny_set.labels_N < 0, 1, tiny_set.labels_N))
    with caplog.at_level("INFO"):
        assert unlabelled_training(check_config(params), labelled, None) is None
    assert "every training image has a label" in caplog.text


@pytest.mark.parametrize("with_teacher", [True, False])
def test_labels_of_one_class_of_two_are_propagated(tiny_set: ImageSet, tmp_path: Path, with_teacher: bool) -> None:
    """As in a fold of a cross-validation that holds out all labels of the other class."""
    labels_N = np.where(tiny_set.labels_N == 2, 1, tiny_set.labels_N)
    images = dataclasses.replace(tiny_set, labels_N=labels_N, classes=("good", "defect"))
    teacher = teacher_embeddings(images) if with_teacher else None
    trainer = UnlabelledTrainer(settings("propagation"), images, teacher, 0)
    budget = images.indices(TRAIN)[labels_N[images.indices(TRAIN)] == 0][:4]
    model = build_model(SMALL.model_copy(update={"num_classes": 2}))
    result = trainer(model, budget, Checkpoint(tmp_path, "run"))
    if with_teacher:
        assert result.pseudo_labels_NC is not None
        assert (result.pseudo_labels_NC[images.indices(TRAIN)].argmax(1) == 0).all()


def test_labels_outside_the_budget_change_nothing(tiny_set: ImageSet) -> None:
    inputs = make_inputs(tiny_set)
    hidden = np.setdiff1d(np.arange(len(tiny_set.labels_N)), inputs.budget)
    labels_N = np.array(tiny_set.labels_N)
    labels_N[hidden] = np.where(labels_N[hidden] >= 0, (labels_N[hidden] + 1) % 3, -1)
    shuffled = dataclasses.replace(inputs, images=dataclasses.replace(tiny_set, labels_N=labels_N))
    model = build_model(SMALL)
    propagation = settings("propagation")
    prepared, altered = (METHODS[Propagation](propagation, each, copy.deepcopy(model)) for each in (inputs, shuffled))
    images_BCHW, positions_B = prepared.batches.at(5)
    assert torch.equal(altered.batches.at(5)[1], positions_B)
    losses = []
    for each in (prepared, altered):
        torch.manual_seed(0)
        losses.append(each.loss(each.trained, images_BCHW, positions_B).item())
    assert losses[0] == losses[1]
    fixmatch = settings("fixmatch")
    first, second = (METHODS[FixMatch](fixmatch, each, model).batches.at(5) for each in (inputs, shuffled))
    assert torch.equal(first[1], second[1])


def test_nothing_is_trained_on_images_that_are_held_out(tiny_set: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cross-validation would otherwise judge a network on images that it learned with their pseudo-labels."""
    seen: list[UnlabelledInputs] = []

    def remember(_settings: object, inputs: UnlabelledInputs, *_: object) -> None:
        seen.append(inputs)

    monkeypatch.setattr(unlabelled_images, "train_on_unlabelled", remember)
    trainer = UnlabelledTrainer(settings("propagation"), tiny_set, teacher_embeddings(tiny_set), 0)
    train, budget = tiny_set.indices(TRAIN), draw_label_budget(tiny_set, 4, 0)
    known, held_out = budget[::2], budget[1::2]
    trainer(build_model(SMALL), known, Checkpoint(Path("unused"), "x"), held_out=held_out)
    groups_N = tiny_set.groups_N
    expected = train[~np.isin(groups_N[train], groups_N[held_out])]
    np.testing.assert_array_equal(seen[0].pool, expected)
    assert not set(held_out.tolist()) & set(seen[0].nodes.tolist())
    batches = METHODS[Propagation](settings("propagation"), seen[0], build_model(SMALL)).batches
    positions = {int(index) for step in range(40) for index in batches.at(step)[1]}
    assert not positions & set(held_out.tolist())
    assert positions & set(expected.tolist())


def test_embeddings_are_learned_beside_pseudo_labels(tiny_set: ImageSet) -> None:
    model, inputs = build_model(SMALL), make_inputs(tiny_set)
    losses = {}
    for weight in (0.0, 0.5, 2.0):
        chosen = settings("propagation", embedding_weight=weight, augmentation={"crop_scale_min": 1.0, "flip": False})
        prepared = METHODS[Propagation](chosen, inputs, model)
        images_BCHW, positions_B = prepared.batches.at(0)
        losses[weight] = prepared.loss(prepared.trained.eval(), images_BCHW, positions_B).item()
    distance = losses[2.0] - losses[0.0]
    assert distance / 2 == pytest.approx(losses[0.5] / 0.5 - losses[0.0] / 0.5, rel=1e-3)
    assert 0.5 < distance / 2 < 1.5  # 1 - cosine of vectors that have nothing to do with each other


@pytest.mark.parametrize("method", ["propagation", "fixmatch"])
def test_each_batch_ends_with_labelled_images(tiny_set: ImageSet, method: str) -> None:
    inputs = make_inputs(tiny_set)
    prepared = METHODS[type(settings(method))](settings(method), inputs, build_model(SMALL))
    images_BCHW, labels_B = prepared.batches.at(3)
    assert images_BCHW.shape == (16, 3, 16, 16)
    if method == "fixmatch":
        assert (labels_B[-2:] >= 0).all()
    else:
        assert set(labels_B[-2:].tolist()) <= set(inputs.budget.tolist())
        assert set(labels_B.tolist()) <= set(tiny_set.indices(TRAIN).tolist())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "with_teacher"), [("propagation", True), ("propagation", False), ("fixmatch", False)]
)
def test_training_learns_resumes_and_repeats(
    tiny_set: ImageSet, tmp_path: Path, method: str, with_teacher: bool
) -> None:
    inputs = make_inputs(tiny_set, with_teacher=with_teacher)
    start = build_model(SMALL, seed=1)
    chosen = settings(method, epochs=6, min_steps=60)
    first, second = copy.deepcopy(start), copy.deepcopy(start)
    result = train_on_unlabelled(chosen, inputs, first, Checkpoint(tmp_path / "a", "x"))
    again = train_on_unlabelled(chosen, inputs, second, Checkpoint(tmp_path / "b", "x"))
    assert result == again
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert result.steps == 60
    assert len(result.curves) == 6
    assert 0 <= result.coverage <= 1
    if with_teacher:
        assert (result.precision, result.coverage) == (1.0, 1.0)
        assert validation_top1(first, tiny_set) > 0.8
    assert validation_top1(first, tiny_set) > validation_top1(start, tiny_set)
