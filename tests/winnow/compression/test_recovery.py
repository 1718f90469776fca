from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from winnow.compression.method_inputs import MethodInputs, TeacherCacheFolder
from winnow.compression.recovery import (
    distillation_loss,
    labelled_cross_entropy,
    labelled_per_batch,
    recover,
    recovery_batches,
    recovery_steps,
    softened_kl,
)
from winnow.compression.teacher_cache import CachedTeacher
from winnow.config import Recovery
from winnow.data.augmentation import normalise, to_float
from winnow.data.batches import Batches
from winnow.data.dataset import TEST, TRAIN, VALIDATION
from winnow.models.backbones import Architecture, build_model, load_model
from winnow.training.loop import Hooks

PLAIN = {"crop_scale_min": 1.0, "flip": False}
ALONE = {"teacher": "none", "images": "labelled"}


def settings(**changes: Any) -> Recovery:
    raw = {"epochs": 2, "min_steps": 1, "batch_size": 16, "optimiser": {"learning_rate": 0.05}, "augmentation": PLAIN}
    return Recovery.model_validate({**raw, **changes})


def small(seed: int = 0) -> nn.Module:
    return build_model(Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2), seed)


def state(model: nn.Module) -> str:
    """Digest of all weights."""
    return hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def hinton_by_hand(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T^2 sum_i p_i log(p_i / q_i) with p, q = softmax(teacher / T), softmax(student / T); image by image."""
    total = 0.0
    for z, v in zip(student.astype(float), teacher.astype(float), strict=True):
        q, p = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (z, v))
        total += float((p * np.log(p / q)).sum()) * temperature**2
    return total / len(student)


def logits(seed: int, count: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_loss_equals_hintons_formula(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    expected = hinton_by_hand(student.numpy(), teacher.numpy(), temperature)
    assert float(softened_kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)


def test_loss_is_least_where_student_and_teacher_agree() -> None:
    student, teacher = logits(0), logits(1)
    assert float(softened_kl(teacher, teacher, 4)) == pytest.approx(0, abs=1e-6)
    assert float(softened_kl(teacher + 7, teacher, 4)) == pytest.approx(0, abs=1e-5)
    assert float(softened_kl(student, teacher, 4)) > 0.1


def test_at_high_temperature_it_matches_logits() -> None:
    # Section 2.1 of the paper: for zero-mean logits T^2 times the gradient tends to (z - v) / classes.
    student, teacher = (part - part.mean(1, keepdim=True) for part in (logits(0), logits(1)))
    student.requires_grad_(True)
    softened_kl(student, teacher, 1e3).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 5 / len(student), rtol=0.02, atol=1e-3)


def test_labels_weigh_the_same_however_many_images_of_a_batch_have_one() -> None:
    answers = logits(0)
    for labels in (torch.tensor([0, -1, 3, -1, -1, 2]), torch.tensor([-1, -1, 3, -1, -1, -1])):
        known = F.cross_entropy(answers[labels >= 0], labels[labels >= 0])
        torch.testing.assert_close(labelled_cross_entropy(answers, labels), known)
    assert float(labelled_cross_entropy(answers, torch.full((6,), -1))) == 0.0


@pytest.mark.parametrize("few", [1, 3, 40])
def test_every_batch_holds_labelled_images_where_few_are(tiny_inputs: MethodInputs, few: int) -> None:
    """teacher_weight is what its name says only if labels speak in every step."""
    inputs = with_labels(tiny_inputs, few)
    batches = recovery_batches(settings(), inputs, 0)
    for step in range(20):
        images_BCHW, labels_B = batches.at(step)
        assert images_BCHW.shape[0] == len(labels_B) == 16
        assert images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert (labels_B[-labelled_per_batch(16) :] >= 0).all()
        assert (labels_B[: -labelled_per_batch(16)] < 0).any()


def test_labels_take_one_less_teacher_weight_of_the_gradient(tiny_inputs: MethodInputs) -> None:
    """With three labelled images of 120, as with all of them."""
    for few in (3, 120):
        images, labels = recovery_batches(settings(), with_labels(tiny_inputs, few), 0).at(0)
        parts = [
            distillation_loss(settings(teacher_weight=weight), 16, small(1).eval())(
                small(0).eval(), images, labels
            ).item()
            for weight in (0.9, 1.0, 0.0)
        ]
        assert parts[0] == pytest.approx(0.9 * parts[1] + 0.1 * parts[2], rel=1e-4)
        views = normalise(to_float(images[labels >= 0]))
        expected = F.cross_entropy(small(0).eval()(views), labels[labels >= 0])
        assert parts[2] == pytest.approx(expected.item(), rel=1e-4)


def test_where_all_images_have_labels_each_is_seen_equally_often(tiny_inputs: MethodInputs) -> None:
    everything = dataclasses.replace(tiny_inputs, labels_N=np.zeros_like(tiny_inputs.labels_N))
    assert isinstance(recovery_batches(settings(), everything, 0), Batches)
    assert isinstance(recovery_batches(settings(images="labelled"), with_labels(tiny_inputs, 30), 0), Batches)


@pytest.mark.parametrize(("size", "count"), [(1, 0), (2, 1), (8, 1), (16, 2), (128, 16)])
def test_an_eighth_of_a_batch_is_labelled(size: int, count: int) -> None:
    assert labelled_per_batch(size) == count


def with_labels(inputs: MethodInputs, count: int) -> MethodInputs:
    """The same images, of which the first `count` of the budget keep their labels."""
    budget = inputs.budget[:count]
    labels = np.full_like(inputs.labels_N, -1)
    labels[budget] = inputs.labels_N[budget]
    return dataclasses.replace(inputs, budget=budget, labels_N=labels)


def test_small_data_get_their_steps(tiny_inputs: MethodInputs) -> None:
    config, images = settings(epochs=10, min_steps=95), len(tiny_inputs.images.indices(TRAIN))
    assert images == 120
    assert recovery_steps(config, tiny_inputs) == 100  # ten epochs alone are 70
    assert recovery_steps(config.with_epochs(2), tiny_inputs) == 20
    assert recovery_steps(settings(epochs=10, min_steps=60), tiny_inputs) == 70
    curves = recover(small(), settings(epochs=2, min_steps=20), tiny_inputs)
    assert len(curves) == 2


def test_an_interrupted_recovery_with_few_labels_ends_the_same(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)
    inputs = with_labels(tiny_inputs, 10)
    whole, broken = small(), small()
    recover(whole, settings(), dataclasses.replace(inputs, scratch=tmp_path / "whole"))

    def stop(_model: nn.Module, step: int) -> None:
        if step == 9:
            raise KeyboardInterrupt

    again = dataclasses.replace(inputs, scratch=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        recover(broken, settings(), again, hooks=Hooks(after_backward=stop))
    fresh = small()
    recover(fresh, settings(), again)
    assert state(fresh) == state(whole)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([0, 1, 2, -1, -1, 0, 1, -1])


def parts() -> tuple[float, float]:
    """What the teacher says and what the labels say of `batch`, by the two formulas."""
    images, labels = batch()
    views = normalise(to_float(images))
    with torch.no_grad():
        student, teacher = small(0).eval()(views), small(1).eval()(views)
    return hinton_by_hand(student.numpy(), teacher.numpy(), 4.0), float(labelled_cross_entropy(student, labels))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_teacher_weight_mixes_the_two(weight: float) -> None:
    teacher_loss, label_loss = parts()
    loss = distillation_loss(settings(teacher_weight=weight), 16, small(1).eval())
    assert loss(small(0).eval(), *batch()).item() == pytest.approx(
        weight * teacher_loss + (1 - weight) * label_loss, rel=1e-3
    )


def test_batch_without_labels_is_taught_by_the_teacher_alone() -> None:
    images, _ = batch()
    taught, _ = parts()
    loss = distillation_loss(settings(teacher_weight=0.9), 16, small(1).eval())
    value = loss(small(0).eval(), images, torch.full((8,), -1))
    assert value.item() == pytest.approx(0.9 * taught, rel=1e-3)
    value.backward()


def test_without_teacher_it_is_cross_entropy() -> None:
    images, labels = batch()
    model = small(0).eval()
    expected = F.cross_entropy(model(normalise(to_float(images))), labels.clamp(min=0))
    torch.testing.assert_close(
        distillation_loss(settings(**ALONE), 16, None)(model, images, labels.clamp(min=0)), expected
    )


def test_gradient_does_not_reach_the_teacher() -> None:
    teacher, student = small(1).eval(), small(0)
    before = state(teacher)
    distillation_loss(settings(), 16, teacher)(student, *batch()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert state(teacher) == before


def test_kept_answers_train_the_same_network_to_the_bit(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, asked = [], []
    ask = CachedTeacher._compute
    monkeypatch.setattr(CachedTeacher, "_compute", lambda self, views: asked.append(1) or ask(self, views))
    cache = TeacherCacheFolder(tmp_path / "answers", "digest of dense")
    for place, teacher_cache in (("a", None), ("b", cache), ("c", cache)):
        model = small()
        recover(
            model, settings(), dataclasses.replace(tiny_inputs, scratch=tmp_path / place, teacher_cache=teacher_cache)
        )
        results.append(state(model))
        if place == "b":
            steps = recovery_steps(settings(), tiny_inputs)
            assert len(asked) == steps
    assert results[0] == results[1] == results[2]
    assert len(asked) == steps  # the third asked nothing


def test_recovery_repeats_and_the_seed_decides(tiny_inputs: MethodInputs) -> None:
    results = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = small()
        recover(model, settings(seed=seed), dataclasses.replace(tiny_inputs, scratch=tiny_inputs.scratch / place))
        results.append(state(model))
        assert not model.training
    assert results[0] == results[1] != results[2]


def test_recovery_learns_what_dense_answers(tiny_inputs: MethodInputs) -> None:
    model = small()
    curves = recover(model, settings(epochs=6), tiny_inputs)
    assert [row["epoch"] for row in curves] == [1, 2, 3, 4, 5, 6]
    assert curves[-1]["loss"] < 0.5 * curves[0]["loss"]


@pytest.mark.parametrize("how", [{}, {"images": "labelled"}, ALONE], ids=["all", "labelled", "alone"])
def test_steps_are_as_many_with_and_without_teacher(tiny_inputs: MethodInputs, how: dict[str, str]) -> None:
    few = dataclasses.replace(tiny_inputs, budget=tiny_inputs.budget[:20])
    steps: list[int] = []
    recover(small(), settings(**how), few, hooks=Hooks(after_step=lambda _model, step: steps.append(step)))
    assert steps == list(range(1, 2 * (120 // 16) + 1))


@pytest.mark.parametrize(("how", "seen"), [({}, True), ({"images": "labelled"}, False), (ALONE, False)])
def test_only_a_teacher_of_all_images_sees_those_without_label(
    tiny_inputs: MethodInputs, how: dict[str, str], seen: bool
) -> None:
    """Every image outside the budget is painted over; the result may change only where the pool is used."""
    budget = tiny_inputs.budget[::4]
    outside = np.setdiff1d(tiny_inputs.images.indices(TRAIN), budget)
    assert _changes(dataclasses.replace(tiny_inputs, budget=budget), outside, settings(**how)) == seen


@pytest.mark.parametrize("split", [VALIDATION, TEST])
def test_other_splits_are_never_trained_on(tiny_inputs: MethodInputs, split: int) -> None:
    assert not _changes(tiny_inputs, tiny_inputs.images.indices(split), settings())


def _changes(inputs: MethodInputs, painted: np.ndarray, config: Recovery) -> bool:
    labels = np.full_like(inputs.labels_N, -1)
    labels[inputs.budget] = inputs.images.labels_N[inputs.budget]
    absurd_images, absurd_labels = np.array(inputs.images.images_NHWC), np.array(labels)
    absurd_images[painted] = 255 - absurd_images[painted]
    results = []
    for pixels in (inputs.images.images_NHWC, absurd_images):
        images = dataclasses.replace(inputs.images, images_NHWC=pixels)
        model = small()
        place = inputs.scratch / str(len(results))
        recover(model, config, dataclasses.replace(inputs, images=images, labels_N=absurd_labels, scratch=place))
        results.append(state(model))
    return results[0] != results[1]


def test_dense_is_left_as_it_was(tiny_inputs: MethodInputs) -> None:
    before = state(load_model(tiny_inputs.dense.folder)[0])
    recover(small(), settings(epochs=1), tiny_inputs)
    assert state(load_model(tiny_inputs.dense.folder)[0]) == before


@pytest.mark.parametrize("wrong", [{"teacher": "none"}, {"teacher_weight": 1.1}, {"temperature": 0}, {"epochs": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)
