from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import tiny_params
from winnow.config import Config, Propagation, check_config
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet
from winnow.data.splits import draw_label_budget
from winnow.deploy.batch_inference import predict_torch
from winnow.deploy.teacher_embeddings import TeacherTargets
from winnow.errors import DataError
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import backbone_state, backbone_weights
from winnow.training import finetuning
from winnow.training.finetuning import (
    FinetunedArm,
    StateDict,
    cross_validate,
    initial_model,
    linear_probe,
    needs_cross_validation,
    train_arms,
    validation_top1,
)
from winnow.training.linear_probe import fit_probe
from winnow.training.unlabelled_images import UnlabelledTrainer

SMALL = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2)


def make_config(labels_per_class: int | str = "all", **finetune: Any) -> Config:
    raw = tiny_params()
    raw["data"]["labels_per_class"] = labels_per_class
    raw["finetune"] |= {"epochs": 2, "min_steps": 8, **finetune}
    return check_config(raw)


def random_backbone(seed: int, architecture: Architecture = SMALL) -> StateDict:
    return backbone_state(build_model(architecture, seed), "fc")


def weights_digest(training: FinetunedArm) -> str:
    """Return a digest of all weights."""
    values = training.model.state_dict().values()
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in values)).hexdigest()


def test_arms_start_with_the_same_head_and_their_own_backbone() -> None:
    scratch, pretrained = initial_model(SMALL, None, 3), initial_model(SMALL, random_backbone(9), 3)
    assert torch.equal(scratch.fc.weight, pretrained.fc.weight)
    assert torch.equal(scratch.fc.bias, pretrained.fc.bias)
    for name, value in random_backbone(9).items():
        assert torch.equal(pretrained.state_dict()[name], value)
    for name, value in random_backbone(3).items():
        assert torch.equal(scratch.state_dict()[name], value)
    assert not torch.equal(initial_model(SMALL, None, 4).fc.weight, scratch.fc.weight)


def test_mnasnet_starts_from_a_pretrained_backbone() -> None:
    architecture = Architecture(backbone="mnasnet0_5", num_classes=3, image_size=32)
    pretrained = backbone_weights(build_model(architecture, 9))
    started = initial_model(architecture, pretrained, 3).state_dict()
    assert all(torch.equal(value, started[name]) for name, value in pretrained.items())


def test_arms_differ_in_their_backbone_only(tiny_set: ImageSet, tmp_path: Path) -> None:
    """Two arms of one backbone are equal to the bit: same head, labels, order, augmentation, steps and rates."""
    arms = {"first": random_backbone(9), "second": random_backbone(9), "other": random_backbone(8)}
    selected, tried = train_arms(make_config(), tiny_set, SMALL, arms, tmp_path)
    by_arm = {arm: [t for t in selected if t.arm == arm] for arm in arms}
    for first, second, other_backbone in zip(*by_arm.values(), strict=True):
        assert (first.row(), first.curves, weights_digest(first)) == (
            second.row(),
            second.curves,
            weights_digest(second),
        )
        assert weights_digest(other_backbone) != weights_digest(first)
        assert (other_backbone.seed, len(other_backbone.curves)) == (first.seed, len(first.curves))
    assert [t.seed for t in by_arm["first"]] == [0, 1]
    assert weights_digest(by_arm["first"][0]) != weights_digest(by_arm["first"][1])
    assert [t.arm for t in tried] == ["first", "second", "other"]


def test_the_arm_from_scratch_has_one_rate_for_all_layers(tiny_set: ImageSet, tmp_path: Path) -> None:
    arms = {"pretrained": random_backbone(9), "scratch": None}
    plain, decayed = (
        train_arms(make_config(seeds=[0], layer_decay=decay), tiny_set, SMALL, arms, tmp_path / str(decay))[0]
        for decay in (1.0, 0.5)
    )
    assert weights_digest(plain[0]) != weights_digest(decayed[0])
    assert weights_digest(plain[1]) == weights_digest(decayed[1])


@pytest.mark.thorough
def test_cross_validation_predicts_each_label_with_a_network_that_has_not_seen_it(
    tiny_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_sets: list[np.ndarray] = []
    train_on_labels = finetuning.train_on_labels

    def recording_train(config: Any, images: Any, model: Any, indices: np.ndarray, *arguments: Any) -> Any:
        training_sets.append(indices)
        return train_on_labels(config, images, model, indices, *arguments)

    monkeypatch.setattr(finetuning, "train_on_labels", recording_train)
    config = make_config(10, epochs=4, min_steps=24, seeds=[3], folds=4)
    dense = train_arms(config, tiny_set, SMALL, {"a": None}, tmp_path)[0][0]
    del training_sets[:]
    cross_validation = cross_validate(config, tiny_set, SMALL, None, dense, tmp_path)
    budget, validation = draw_label_budget(tiny_set, 10, 3), tiny_set.indices(VALIDATION, labelled=True)
    assert cross_validation.labelled_L.tolist() == sorted([*budget, *validation])
    assert cross_validation.folds == len(training_sets) == 4
    held_out = [np.setdiff1d(cross_validation.labelled_L, indices) for indices in training_sets]
    assert sorted(np.concatenate(held_out)) == cross_validation.labelled_L.tolist()
    groups = tiny_set.groups_N
    for held_out_indices, indices in zip(held_out, training_sets, strict=True):
        assert not set(groups[held_out_indices]) & set(groups[indices])
        counts = np.bincount(tiny_set.labels_N[held_out_indices], minlength=3)
        assert counts.max() - counts.min() <= 2
    accuracy = (cross_validation.logits_LC.argmax(1) == tiny_set.labels_N[cross_validation.labelled_L]).mean()
    assert accuracy > 0.6
    repeated = cross_validate(config, tiny_set, SMALL, None, dense, tmp_path / "again")
    assert np.array_equal(repeated.logits_LC, cross_validation.logits_LC)


@pytest.mark.parametrize(
    ("setting", "labels", "expected"),
    [("auto", 499, True), ("auto", 500, False), ("always", 500, True), ("never", 0, False)],
)
def test_cross_validation_is_enabled_if_labels_are_few(
    tiny_set: ImageSet, setting: str, labels: int, expected: bool
) -> None:
    count = 600
    split = np.full(count, VALIDATION, np.uint8)
    labels_N = np.where(np.arange(count) < labels, 0, -1)
    images = dataclasses.replace(tiny_set, split_N=split, labels_N=labels_N)
    assert needs_cross_validation(make_config(cross_validation=setting), images) is expected


def test_the_learning_rate_is_selected_on_the_first_seed(tiny_set: ImageSet, tmp_path: Path) -> None:
    config = make_config(learning_rates=[1e-6, 0.05], seeds=[2, 0], epochs=4, min_steps=24)
    selected, tried = train_arms(config, tiny_set, SMALL, {"a": None, "b": random_backbone(9)}, tmp_path)
    assert [(t.arm, t.seed, t.learning_rate) for t in tried] == [
        (arm, 2, rate) for arm in ("a", "b") for rate in (1e-6, 0.05)
    ]
    assert [(t.arm, t.seed, t.learning_rate) for t in selected] == [
        (arm, seed, 0.05) for arm in ("a", "b") for seed in (2, 0)
    ]
    assert tried[1].top1 > tried[0].top1
    assert selected[0] is tried[1]
    assert all(t.top1 == validation_top1(t.model, tiny_set) for t in selected)


def change_hidden_data(images: ImageSet, seeds: tuple[int, ...]) -> ImageSet:
    """Return the images with wrong hidden training labels, where budgets stay the same, and white test images."""
    labels, pixels = np.array(images.labels_N), np.array(images.images_NHWC)
    budgets = [draw_label_budget(images, 5, seed) for seed in seeds]
    change_count = 0
    for index in np.setdiff1d(images.indices(TRAIN, labelled=True), np.concatenate(budgets))[::3]:
        original, labels[index] = labels[index], (labels[index] + 1) % 3
        changed_images = dataclasses.replace(images, labels_N=labels)
        if all(
            (draw_label_budget(changed_images, 5, budget_seed).tolist() == budget.tolist())
            for budget_seed, budget in zip(seeds, budgets, strict=True)
        ):
            change_count += 1
        else:
            labels[index] = original
    assert change_count > 10
    pixels[images.indices(TEST)] = 255
    return dataclasses.replace(images, labels_N=labels, images_NHWC=pixels)


def test_hidden_labels_and_test_images_are_not_used(tiny_set: ImageSet, tmp_path: Path) -> None:
    config = make_config(5, epochs=3)
    results = []
    for number, images in enumerate((tiny_set, change_hidden_data(tiny_set, (0, 1)))):
        selected, _ = train_arms(config, images, SMALL, {"scratch": None}, tmp_path / str(number))
        probe = linear_probe(config, images, initial_model(SMALL, random_backbone(9), 0))
        results.append(([(t.row(), t.curves, weights_digest(t)) for t in selected], probe))
    assert results[0] == results[1]


def test_the_result_depends_on_the_number_of_labels(tiny_set: ImageSet, tmp_path: Path) -> None:
    few_labels, all_labels = (
        train_arms(make_config(budget, seeds=[0]), tiny_set, SMALL, {"a": None}, tmp_path / str(budget))[0][0]
        for budget in (5, "all")
    )
    assert weights_digest(few_labels) != weights_digest(all_labels)
    # 8 steps at least: 15 labels alone would make 2 epochs of a single step each.
    assert len(few_labels.curves) == len(all_labels.curves) == 2


def test_top1_is_the_share_of_correct_predictions(tiny_set: ImageSet) -> None:
    model = initial_model(SMALL, None, 0)
    indices = tiny_set.indices(VALIDATION, labelled=True)
    predictions = predict_torch(model, tiny_set.images_NHWC, indices).argmax(1)
    assert validation_top1(model, tiny_set) == (predictions == tiny_set.labels_N[indices]).mean()


def test_a_class_with_one_label_is_cross_validated(tiny_set: ImageSet, tmp_path: Path) -> None:
    """In one fold no network sees the class, neither in fine-tuning nor in the propagation of labels."""
    train = tiny_set.indices(TRAIN)
    labels_N = np.full_like(tiny_set.labels_N, -1)
    labels_N[train[:20]], labels_N[train[20]] = 0, 1
    images = dataclasses.replace(tiny_set, labels_N=labels_N, classes=("good", "defect"))
    architecture = SMALL.model_copy(update={"num_classes": 2})
    rows_ND = np.random.default_rng(0).normal(0, 1, (len(labels_N), 8)).astype(np.float16)
    unlabelled = Propagation(method="propagation", epochs=1, min_steps=2, batch_size=16)
    trainer = UnlabelledTrainer(unlabelled, images, TeacherTargets(rows_ND, rows_ND.mean(0, dtype=np.float32)), 0)
    dense = FinetunedArm("scratch", 0, 0.05, 1, 0.0, build_model(architecture), [])
    config = make_config(cross_validation="always")
    crossed = cross_validate(config, images, architecture, None, dense, tmp_path, trainer)
    assert len(crossed.labelled_L) == 21
    assert np.isfinite(crossed.logits_LC).all()


def test_a_probe_of_one_class_predicts_it() -> None:
    features_ND = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    for standardise in (True, False):
        probe = fit_probe(features_ND, np.full(6, 1), standardise=standardise)
        assert probe.classes_.tolist() == [1]
        assert probe.predict_proba(features_ND).tolist() == [[1.0]] * 6


def test_the_probe_learns_and_does_not_change_the_network(tiny_set: ImageSet) -> None:
    model = initial_model(SMALL, None, 0)
    state_before = {name: value.clone() for name, value in model.state_dict().items()}
    probe = linear_probe(make_config(), tiny_set, model)
    assert probe == linear_probe(make_config(), tiny_set, model)
    assert (probe.seed, probe.top1 > 0.9) == (0, True)
    assert all(torch.equal(value, state_before[name]) for name, value in model.state_dict().items())
    shuffled = np.random.default_rng(0).permutation(tiny_set.labels_N[tiny_set.indices(TRAIN, labelled=True)])
    labels = np.array(tiny_set.labels_N)
    labels[tiny_set.indices(TRAIN, labelled=True)] = shuffled
    assert linear_probe(make_config(), dataclasses.replace(tiny_set, labels_N=labels), model).top1 < 0.7


def test_fine_tuning_needs_validation_labels(tiny_set: ImageSet, tmp_path: Path) -> None:
    labels = np.where(tiny_set.split_N == VALIDATION, -1, tiny_set.labels_N)
    with pytest.raises(DataError, match="no validation image has a label"):
        train_arms(make_config(), dataclasses.replace(tiny_set, labels_N=labels), SMALL, {"a": None}, tmp_path)
