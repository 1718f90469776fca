from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import tiny_params
from winnow.config import Config, check_config
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet
from winnow.data.splits import draw_label_budget
from winnow.deploy.batch_inference import predict_torch
from winnow.errors import DataError
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import backbone_state
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

SMALL = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2)


def configured(labels_per_class: int | str = "all", **finetune: Any) -> Config:
    raw = tiny_params()
    raw["data"]["labels_per_class"] = labels_per_class
    raw["finetune"] |= {"epochs": 2, "min_steps": 8, **finetune}
    return check_config(raw)


def backbone(seed: int, architecture: Architecture = SMALL) -> StateDict:
    return backbone_state(build_model(architecture, seed), "fc")


def weights(training: FinetunedArm) -> str:
    """Digest of all of them."""
    values = training.model.state_dict().values()
    return hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in values)).hexdigest()


def test_arms_begin_with_one_head_and_their_own_backbone() -> None:
    scratch, pretrained = initial_model(SMALL, None, 3), initial_model(SMALL, backbone(9), 3)
    assert torch.equal(scratch.fc.weight, pretrained.fc.weight)
    assert torch.equal(scratch.fc.bias, pretrained.fc.bias)
    for name, value in backbone(9).items():
        assert torch.equal(pretrained.state_dict()[name], value)
    for name, value in backbone(3).items():
        assert torch.equal(scratch.state_dict()[name], value)
    assert not torch.equal(initial_model(SMALL, None, 4).fc.weight, scratch.fc.weight)


def test_arms_differ_in_their_backbone_alone(tiny_set: ImageSet, tmp_path: Path) -> None:
    """Two arms of one backbone come out equal to the bit: same head, labels, order, augmentation, steps and rates."""
    arms = {"first": backbone(9), "second": backbone(9), "other": backbone(8)}
    chosen, tried = train_arms(configured(), tiny_set, SMALL, arms, tmp_path)
    by_arm = {arm: [t for t in chosen if t.arm == arm] for arm in arms}
    for first, second, other in zip(*by_arm.values(), strict=True):
        assert (first.row(), first.curves, weights(first)) == (second.row(), second.curves, weights(second))
        assert weights(other) != weights(first)
        assert (other.seed, len(other.curves)) == (first.seed, len(first.curves))
    assert [t.seed for t in by_arm["first"]] == [0, 1]
    assert weights(by_arm["first"][0]) != weights(by_arm["first"][1])
    assert [t.arm for t in tried] == ["first", "second", "other"]


@pytest.mark.thorough
def test_every_label_is_answered_by_a_network_that_has_not_seen_it(
    tiny_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[np.ndarray] = []
    learn = finetuning.train_on_labels

    def spy(config: Any, images: Any, model: Any, chosen: np.ndarray, *rest: Any) -> Any:
        learned.append(chosen)
        return learn(config, images, model, chosen, *rest)

    monkeypatch.setattr(finetuning, "train_on_labels", spy)
    config = configured(10, epochs=4, min_steps=24, seeds=[3], folds=4)
    dense = train_arms(config, tiny_set, SMALL, {"a": None}, tmp_path)[0][0]
    del learned[:]
    crossed = cross_validate(config, tiny_set, SMALL, None, dense, tmp_path)
    budget, validation = draw_label_budget(tiny_set, 10, 3), tiny_set.indices(VALIDATION, labelled=True)
    assert crossed.labelled_L.tolist() == sorted([*budget, *validation])
    assert crossed.folds == len(learned) == 4
    held_out = [np.setdiff1d(crossed.labelled_L, chosen) for chosen in learned]
    assert sorted(np.concatenate(held_out)) == crossed.labelled_L.tolist()
    groups = tiny_set.groups_N
    for held, chosen in zip(held_out, learned, strict=True):
        assert not set(groups[held]) & set(groups[chosen])
        counts = np.bincount(tiny_set.labels_N[held], minlength=3)
        assert counts.max() - counts.min() <= 2
    right = (crossed.logits_LC.argmax(1) == tiny_set.labels_N[crossed.labelled_L]).mean()
    assert right > 0.6
    again = cross_validate(config, tiny_set, SMALL, None, dense, tmp_path / "again")
    assert np.array_equal(again.logits_LC, crossed.logits_LC)


@pytest.mark.parametrize(
    ("asked", "labels", "wanted"),
    [("auto", 499, True), ("auto", 500, False), ("always", 500, True), ("never", 0, False)],
)
def test_cross_validation_is_switched_on_by_few_labels(
    tiny_set: ImageSet, asked: str, labels: int, wanted: bool
) -> None:
    count = 600
    split = np.full(count, VALIDATION, np.uint8)
    known = np.where(np.arange(count) < labels, 0, -1)
    images = dataclasses.replace(tiny_set, split_N=split, labels_N=known)
    assert needs_cross_validation(configured(cross_validation=asked), images) is wanted


def test_the_rate_is_chosen_on_the_first_seed_and_serves_the_others(tiny_set: ImageSet, tmp_path: Path) -> None:
    config = configured(learning_rates=[1e-6, 0.05], seeds=[2, 0], epochs=4, min_steps=24)
    chosen, tried = train_arms(config, tiny_set, SMALL, {"a": None, "b": backbone(9)}, tmp_path)
    assert [(t.arm, t.seed, t.learning_rate) for t in tried] == [
        (arm, 2, rate) for arm in ("a", "b") for rate in (1e-6, 0.05)
    ]
    assert [(t.arm, t.seed, t.learning_rate) for t in chosen] == [(arm, s, 0.05) for arm in ("a", "b") for s in (2, 0)]
    assert tried[1].top1 > tried[0].top1
    assert chosen[0] is tried[1]
    assert all(t.top1 == validation_top1(t.model, tiny_set) for t in chosen)


def absurd(images: ImageSet, seeds: tuple[int, ...]) -> ImageSet:
    """Hidden training labels are wrong as far as that leaves the budgets as they are; the test set is painted over."""
    labels, pixels = np.array(images.labels_N), np.array(images.images_NHWC)
    budgets = [draw_label_budget(images, 5, seed) for seed in seeds]
    changed = 0
    for index in np.setdiff1d(images.indices(TRAIN, labelled=True), np.concatenate(budgets))[::3]:
        before, labels[index] = labels[index], (labels[index] + 1) % 3
        now = dataclasses.replace(images, labels_N=labels)
        if all((draw_label_budget(now, 5, s).tolist() == b.tolist()) for s, b in zip(seeds, budgets, strict=True)):
            changed += 1
        else:
            labels[index] = before
    assert changed > 10
    pixels[images.indices(TEST)] = 255
    return dataclasses.replace(images, labels_N=labels, images_NHWC=pixels)


def test_hidden_labels_and_test_images_are_never_seen(tiny_set: ImageSet, tmp_path: Path) -> None:
    config = configured(5, epochs=3)
    results = []
    for number, images in enumerate((tiny_set, absurd(tiny_set, (0, 1)))):
        chosen, _ = train_arms(config, images, SMALL, {"scratch": None}, tmp_path / str(number))
        probe = linear_probe(config, images, initial_model(SMALL, backbone(9), 0))
        results.append(([(t.row(), t.curves, weights(t)) for t in chosen], probe))
    assert results[0] == results[1]


def test_more_labels_another_result(tiny_set: ImageSet, tmp_path: Path) -> None:
    few, many = (
        train_arms(configured(budget, seeds=[0]), tiny_set, SMALL, {"a": None}, tmp_path / str(budget))[0][0]
        for budget in (5, "all")
    )
    assert weights(few) != weights(many)
    # 8 steps at least: 15 labels alone would make 2 epochs of a single step each.
    assert len(few.curves) == len(many.curves) == 2


def test_top1_by_hand(tiny_set: ImageSet) -> None:
    model = initial_model(SMALL, None, 0)
    indices = tiny_set.indices(VALIDATION, labelled=True)
    answers = predict_torch(model, tiny_set.images_NHWC, indices).argmax(1)
    assert validation_top1(model, tiny_set) == (answers == tiny_set.labels_N[indices]).mean()


def test_probe_tells_colours_apart_and_leaves_the_network_alone(tiny_set: ImageSet) -> None:
    model = initial_model(SMALL, None, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = linear_probe(configured(), tiny_set, model)
    assert first == linear_probe(configured(), tiny_set, model)
    assert (first.seed, first.top1 > 0.9) == (0, True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    shuffled = np.random.default_rng(0).permutation(tiny_set.labels_N[tiny_set.indices(TRAIN, labelled=True)])
    labels = np.array(tiny_set.labels_N)
    labels[tiny_set.indices(TRAIN, labelled=True)] = shuffled
    assert linear_probe(configured(), dataclasses.replace(tiny_set, labels_N=labels), model).top1 < 0.7


def test_without_validation_labels_nothing_can_be_chosen(tiny_set: ImageSet, tmp_path: Path) -> None:
    labels = np.where(tiny_set.split_N == VALIDATION, -1, tiny_set.labels_N)
    with pytest.raises(DataError, match="no validation image has a label"):
        train_arms(configured(), dataclasses.replace(tiny_set, labels_N=labels), SMALL, {"a": None}, tmp_path)
