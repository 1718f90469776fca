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
    image_targets,
    labelled_cross_entropy,
    recover,
    recovery_batches,
    recovery_steps,
    softened_kl,
    teacher_kind,
)
from winnow.compression.teacher_cache import CachedTeacher
from winnow.config import Recovery
from winnow.data.augmentation import normalise, to_float
from winnow.data.batches import Batches, labelled_per_batch
from winnow.data.dataset import TEST, TRAIN, VALIDATION
from winnow.models.backbones import Architecture, build_model, load_model
from winnow.training.loop import Hooks

NO_AUGMENTATION = {"crop_scale_min": 1.0, "flip": False}
WITHOUT_TEACHER = {"teacher": "none", "images": "labelled"}


def settings(**changes: Any) -> Recovery:
    raw = {
        "epochs": 2,
        "min_steps": 1,
        "batch_size": 16,
        "optimiser": {"learning_rate": 0.05},
        "augmentation": NO_AUGMENTATION,
    }
    return Recovery.model_validate({**raw, **changes})


def small_network(seed: int = 0) -> nn.Module:
    return build_model(Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2), seed)


def weights_digest(model: nn.Module) -> str:
    """Return a digest of all weights."""
    return hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def hinton_loss(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Compute T^2 sum_i p_i log(p_i / q_i), p, q = softmax(teacher / T), softmax(student / T), image by image."""
    total = 0.0
    for z, v in zip(student.astype(float), teacher.astype(float), strict=True):
        q, p = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (z, v))
        total += float((p * np.log(p / q)).sum()) * temperature**2
    return total / len(student)


def random_logits(seed: int, count: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_loss_equals_the_formula_of_hinton(temperature: float) -> None:
    student, teacher = random_logits(0), random_logits(1)
    expected = hinton_loss(student.numpy(), teacher.numpy(), temperature)
    assert float(softened_kl(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)


def test_loss_is_least_where_student_and_teacher_agree() -> None:
    student, teacher = random_logits(0), random_logits(1)
    assert float(softened_kl(teacher, teacher, 4)) == pytest.approx(0, abs=1e-6)
    assert float(softened_kl(teacher + 7, teacher, 4)) == pytest.approx(0, abs=1e-5)
    assert float(softened_kl(student, teacher, 4)) > 0.1


def test_at_high_temperature_it_matches_logits() -> None:
    # Section 2.1 of the paper: for zero-mean logits T^2 times the gradient tends to (z - v) / classes.
    student, teacher = (
        logits_NC - logits_NC.mean(1, keepdim=True) for logits_NC in (random_logits(0), random_logits(1))
    )
    student.requires_grad_(True)
    softened_kl(student, teacher, 1e3).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 5 / len(student), rtol=0.02, atol=1e-3)


def test_the_label_loss_is_the_mean_over_labelled_images() -> None:
    predicted = random_logits(0)
    for labels in (torch.tensor([0, -1, 3, -1, -1, 2]), torch.tensor([-1, -1, 3, -1, -1, -1])):
        expected = F.cross_entropy(predicted[labels >= 0], labels[labels >= 0])
        torch.testing.assert_close(labelled_cross_entropy(predicted, labels), expected)
    assert float(labelled_cross_entropy(predicted, torch.full((6,), -1))) == 0.0


@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_batch_holds_labelled_images_if_labels_are_few(tiny_inputs: MethodInputs, count: int) -> None:
    """Otherwise teacher_weight would not be the weight of the teacher in each step."""
    inputs = with_labels(tiny_inputs, count)
    batches = recovery_batches(settings(), inputs, 0)
    for step in range(20):
        images_BCHW, labels_B = batches.at(step)
        assert images_BCHW.shape[0] == len(labels_B) == 16
        assert images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert (labels_B[-labelled_per_batch(16) :] >= 0).all()
        assert (labels_B[: -labelled_per_batch(16)] < 0).any()


def test_the_label_loss_has_the_weight_one_minus_teacher_weight(tiny_inputs: MethodInputs) -> None:
    """This holds with three labelled images of 120 as with all of them."""
    for count in (3, 120):
        images, labels = recovery_batches(settings(), with_labels(tiny_inputs, count), 0).at(0)
        losses = [
            distillation_loss(settings(teacher_weight=weight), 16, small_network(1).eval())(
                small_network(0).eval(), images, labels
            ).item()
            for weight in (0.9, 1.0, 0.0)
        ]
        assert losses[0] == pytest.approx(0.9 * losses[1] + 0.1 * losses[2], rel=1e-4)
        views = normalise(to_float(images[labels >= 0]))
        expected = F.cross_entropy(small_network(0).eval()(views), labels[labels >= 0])
        assert losses[2] == pytest.approx(expected.item(), rel=1e-4)


def test_fully_labelled_images_are_sampled_uniformly(tiny_inputs: MethodInputs) -> None:
    fully_labelled = dataclasses.replace(tiny_inputs, labels_N=np.zeros_like(tiny_inputs.labels_N))
    assert isinstance(recovery_batches(settings(), fully_labelled, 0), Batches)
    assert isinstance(recovery_batches(settings(images="labelled"), with_labels(tiny_inputs, 30), 0), Batches)


@pytest.mark.parametrize(("size", "count"), [(1, 0), (2, 1), (8, 1), (16, 2), (128, 16)])
def test_an_eighth_of_a_batch_is_labelled(size: int, count: int) -> None:
    assert labelled_per_batch(size) == count


def with_labels(inputs: MethodInputs, count: int) -> MethodInputs:
    """Return the same images, of which the first `count` of the budget keep their labels."""
    budget = inputs.budget[:count]
    labels = np.full_like(inputs.labels_N, -1)
    labels[budget] = inputs.labels_N[budget]
    return dataclasses.replace(inputs, budget=budget, labels_N=labels)


def test_small_data_sets_get_min_steps(tiny_inputs: MethodInputs) -> None:
    config, images = settings(epochs=10, min_steps=95), len(tiny_inputs.images.indices(TRAIN))
    assert images == 120
    assert recovery_steps(config, tiny_inputs) == 100  # ten epochs alone are 70
    assert recovery_steps(config.with_epochs(2), tiny_inputs) == 20
    assert recovery_steps(settings(epochs=10, min_steps=60), tiny_inputs) == 70
    curves = recover(small_network(), settings(epochs=2, min_steps=20), tiny_inputs)
    assert len(curves) == 2


def test_an_interrupted_recovery_with_few_labels_ends_the_same(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)
    inputs = with_labels(tiny_inputs, 10)
    uninterrupted, interrupted = small_network(), small_network()
    recover(uninterrupted, settings(), dataclasses.replace(inputs, scratch=tmp_path / "whole"))

    def stop(_model: nn.Module, step: int) -> None:
        if step == 9:
            raise KeyboardInterrupt

    resumed_inputs = dataclasses.replace(inputs, scratch=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        recover(interrupted, settings(), resumed_inputs, hooks=Hooks(after_backward=stop))
    resumed = small_network()
    recover(resumed, settings(), resumed_inputs)
    assert weights_digest(resumed) == weights_digest(uninterrupted)


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([0, 1, 2, -1, -1, 0, 1, -1])


def expected_losses() -> tuple[float, float]:
    """Return the teacher's and the labels' loss of `make_batch`, by the two formulas."""
    images, labels = make_batch()
    views = normalise(to_float(images))
    with torch.no_grad():
        student, teacher = small_network(0).eval()(views), small_network(1).eval()(views)
    return hinton_loss(student.numpy(), teacher.numpy(), 4.0), float(labelled_cross_entropy(student, labels))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_teacher_weight_mixes_the_two(weight: float) -> None:
    teacher_loss, label_loss = expected_losses()
    loss = distillation_loss(settings(teacher_weight=weight), 16, small_network(1).eval())
    assert loss(small_network(0).eval(), *make_batch()).item() == pytest.approx(
        weight * teacher_loss + (1 - weight) * label_loss, rel=1e-3
    )


def test_a_batch_without_labels_has_the_teacher_loss_only() -> None:
    images, _ = make_batch()
    teacher_loss, _ = expected_losses()
    loss = distillation_loss(settings(teacher_weight=0.9), 16, small_network(1).eval())
    value = loss(small_network(0).eval(), images, torch.full((8,), -1))
    assert value.item() == pytest.approx(0.9 * teacher_loss, rel=1e-3)
    value.backward()


def with_pseudo_labels(inputs: MethodInputs, probabilities_NC: np.ndarray) -> MethodInputs:
    return dataclasses.replace(inputs, pseudo_labels_NC=probabilities_NC.astype(np.float16))


def random_probabilities(images: int, classes: int = 3) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(classes), size=images)


@pytest.mark.parametrize(
    ("teacher", "with_labels_of_the_large_network", "expected"),
    [
        ("auto", True, "pseudo-labels"),
        ("auto", False, "dense"),
        ("dense", True, "dense"),
        ("none", True, "none"),
    ],
)
def test_auto_means_what_dense_has_learned(
    tiny_inputs: MethodInputs, teacher: str, with_labels_of_the_large_network: bool, expected: str
) -> None:
    inputs = tiny_inputs
    if with_labels_of_the_large_network:
        inputs = with_pseudo_labels(inputs, random_probabilities(len(inputs.labels_N)))
    chosen = settings(teacher=teacher, images="labelled" if teacher == "none" else "all")
    assert teacher_kind(chosen, inputs) == expected
    assert (image_targets(chosen, inputs) is not None) == (expected == "pseudo-labels")


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_pseudo_labels_are_learned_by_cross_entropy_of_each_image(tiny_inputs: MethodInputs, weight: float) -> None:
    inputs = with_pseudo_labels(with_labels(tiny_inputs, 30), random_probabilities(len(tiny_inputs.labels_N)))
    chosen = settings(teacher_weight=weight)
    images_BCHW, indices_B = recovery_batches(chosen, inputs, 0).at(0)
    model = small_network(0).eval()
    logarithms_BC = model(normalise(to_float(images_BCHW))).log_softmax(1).detach().numpy()
    labels_B, probabilities_NC = inputs.labels_N[indices_B.numpy()], inputs.pseudo_labels_NC
    assert probabilities_NC is not None
    teacher_loss = -(probabilities_NC[indices_B.numpy()].astype(float) * logarithms_BC).sum(1).mean()
    labelled = labels_B >= 0
    label_loss = -logarithms_BC[labelled, labels_B[labelled]].mean()
    assert 0 < labelled.sum() < len(labelled)
    loss = distillation_loss(chosen, 16, None, None, image_targets(chosen, inputs))(model, images_BCHW, indices_B)
    assert loss.item() == pytest.approx(weight * teacher_loss + (1 - weight) * label_loss, rel=1e-3)


@pytest.mark.parametrize("hint", ["none", "attention"])
def test_pseudo_labels_are_learned_in_place_of_the_outputs_of_dense(tiny_inputs: MethodInputs, hint: str) -> None:
    """With pseudo-labels of one class alone the network predicts this class, whatever dense predicts."""
    probabilities_NC = np.zeros((len(tiny_inputs.labels_N), 3))
    probabilities_NC[:, 2] = 1
    model, chosen = small_network(), settings(epochs=6, teacher_weight=1.0, hint=hint)
    recover(model, chosen, with_pseudo_labels(tiny_inputs, probabilities_NC))
    images_NHWC = np.array(tiny_inputs.images.images_NHWC)[tiny_inputs.images.indices(VALIDATION)]
    predictions = model(normalise(to_float(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)))).argmax(1)
    assert (predictions == 2).float().mean() > 0.95


def test_without_teacher_it_is_cross_entropy() -> None:
    images, labels = make_batch()
    model = small_network(0).eval()
    expected = F.cross_entropy(model(normalise(to_float(images))), labels.clamp(min=0))
    torch.testing.assert_close(
        distillation_loss(settings(**WITHOUT_TEACHER), 16, None)(model, images, labels.clamp(min=0)), expected
    )


def test_gradient_does_not_reach_the_teacher() -> None:
    teacher, student = small_network(1).eval(), small_network(0)
    teacher_digest = weights_digest(teacher)
    distillation_loss(settings(), 16, teacher)(student, *make_batch()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert weights_digest(teacher) == teacher_digest


def test_cached_teacher_logits_train_the_same_network_to_the_bit(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, computed = [], []
    compute = CachedTeacher._compute
    monkeypatch.setattr(CachedTeacher, "_compute", lambda self, views: computed.append(1) or compute(self, views))
    cache = TeacherCacheFolder(tmp_path / "answers", "digest of dense")
    for name, teacher_cache in (("a", None), ("b", cache), ("c", cache)):
        model = small_network()
        recover(
            model, settings(), dataclasses.replace(tiny_inputs, scratch=tmp_path / name, teacher_cache=teacher_cache)
        )
        results.append(weights_digest(model))
        if name == "b":
            steps = recovery_steps(settings(), tiny_inputs)
            assert len(computed) == steps
    assert results[0] == results[1] == results[2]
    assert len(computed) == steps  # the third training reads the cache only


def test_recovery_depends_on_the_seed_only(tiny_inputs: MethodInputs) -> None:
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = small_network()
        recover(model, settings(seed=seed), dataclasses.replace(tiny_inputs, scratch=tiny_inputs.scratch / name))
        results.append(weights_digest(model))
        assert not model.training
    assert results[0] == results[1] != results[2]


def test_recovery_learns_the_predictions_of_dense(tiny_inputs: MethodInputs) -> None:
    model = small_network()
    curves = recover(model, settings(epochs=6), tiny_inputs)
    assert [row["epoch"] for row in curves] == [1, 2, 3, 4, 5, 6]
    assert curves[-1]["loss"] < 0.5 * curves[0]["loss"]


@pytest.mark.parametrize("changes", [{}, {"images": "labelled"}, WITHOUT_TEACHER], ids=["all", "labelled", "alone"])
def test_the_number_of_steps_does_not_depend_on_the_teacher(tiny_inputs: MethodInputs, changes: dict[str, str]) -> None:
    inputs = dataclasses.replace(tiny_inputs, budget=tiny_inputs.budget[:20])
    steps: list[int] = []
    recover(
        small_network(), settings(**changes), inputs, hooks=Hooks(after_step=lambda _model, step: steps.append(step))
    )
    assert steps == list(range(1, 2 * (120 // 16) + 1))


@pytest.mark.parametrize(
    ("changes", "depends"), [({}, True), ({"images": "labelled"}, False), (WITHOUT_TEACHER, False)]
)
def test_unlabelled_images_are_used_only_by_a_teacher_of_all_images(
    tiny_inputs: MethodInputs, changes: dict[str, str], depends: bool
) -> None:
    """Changing every image outside the budget may change the result only with images: all."""
    budget = tiny_inputs.budget[::4]
    unlabelled = np.setdiff1d(tiny_inputs.images.indices(TRAIN), budget)
    assert _depends_on(dataclasses.replace(tiny_inputs, budget=budget), unlabelled, settings(**changes)) == depends


@pytest.mark.parametrize("split", [VALIDATION, TEST])
def test_other_splits_are_never_trained_on(tiny_inputs: MethodInputs, split: int) -> None:
    assert not _depends_on(tiny_inputs, tiny_inputs.images.indices(split), settings())


def _depends_on(inputs: MethodInputs, changed: np.ndarray, config: Recovery) -> bool:
    labels = np.full_like(inputs.labels_N, -1)
    labels[inputs.budget] = inputs.images.labels_N[inputs.budget]
    changed_images, visible_labels = np.array(inputs.images.images_NHWC), np.array(labels)
    changed_images[changed] = 255 - changed_images[changed]
    results = []
    for pixels in (inputs.images.images_NHWC, changed_images):
        images = dataclasses.replace(inputs.images, images_NHWC=pixels)
        model = small_network()
        scratch = inputs.scratch / str(len(results))
        recover(model, config, dataclasses.replace(inputs, images=images, labels_N=visible_labels, scratch=scratch))
        results.append(weights_digest(model))
    return results[0] != results[1]


def test_dense_is_not_changed(tiny_inputs: MethodInputs) -> None:
    digest = weights_digest(load_model(tiny_inputs.dense.folder)[0])
    recover(small_network(), settings(epochs=1), tiny_inputs)
    assert weights_digest(load_model(tiny_inputs.dense.folder)[0]) == digest


@pytest.mark.parametrize("changes", [{"teacher": "none"}, {"teacher_weight": 1.1}, {"temperature": 0}, {"epochs": 0}])
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)
