from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from winnow.compression.feature_distillation import (
    HINTS,
    attention_distance,
    capture_feature_maps,
)
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import (
    distillation_loss,
    image_targets,
    recover,
    recovery_batches,
    with_projector,
)
from winnow.config import Recovery
from winnow.data.augmentation import normalise, to_float
from winnow.data.dataset import TRAIN
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model, load_backbone, load_model
from winnow.models.classifier_head import feature_dim
from winnow.training.feature_projector import FeatureProjector, capture_features, predict_embeddings

RECOVERY = {"epochs": 2, "min_steps": 1, "batch_size": 16, "optimiser": {"learning_rate": 0.05}}


def settings(**changes: Any) -> Recovery:
    return Recovery.model_validate({**RECOVERY, **changes})


def network(width: float = 0.5, seed: int = 0) -> nn.Module:
    return build_model(Architecture(backbone="resnet8", num_classes=3, image_size=16, width=width), seed).eval()


def views(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_attention_distance_is_that_of_zagoruyko() -> None:
    student, teacher = torch.randn(3, 6, 4, 4), torch.randn(3, 9, 4, 4)
    maps = [F.normalize((features**2).sum(1).view(3, -1)) for features in (student, teacher)]
    expected = (maps[0] - maps[1]).pow(2).sum(1).mean()
    torch.testing.assert_close(attention_distance({4: student}, {4: teacher}), expected)
    # Neither the number of channels nor their scale matters, and resolutions of only one network are ignored.
    assert float(
        attention_distance({4: student}, {4: torch.cat([student, student], 1) * 3, 2: teacher})
    ) == pytest.approx(0, abs=1e-6)


def test_no_common_resolution_is_an_error() -> None:
    with pytest.raises(ConfigError, match="share none; use hint: features"):
        attention_distance({4: torch.rand(1, 2, 4, 4)}, {8: torch.rand(1, 2, 8, 8)})


def test_features_are_the_input_of_the_head() -> None:
    model = network()
    with capture_features(model) as captured:
        logits = model(views())
    torch.testing.assert_close(model.fc(captured[0]), logits)
    assert not model.fc._forward_pre_hooks


def test_feature_maps_are_the_last_of_each_resolution() -> None:
    model = network()
    with capture_feature_maps(model) as captured:
        model(views())
    assert {height: feature_map.shape[1] for height, feature_map in captured.items()} == {8: 24, 4: 48, 2: 96}
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["features", "attention"])
def test_a_hint_is_zero_for_equal_networks_and_decreases_in_training(kind: str) -> None:
    teacher = network(seed=1)
    student: nn.Module = copy.deepcopy(teacher)
    if kind == "features":
        student = FeatureProjector(student, feature_dim(teacher), 0)
        nn.init.eye_(student.translate.weight)
        nn.init.zeros_(student.translate.bias)
    student_BC, teacher_BC, loss = HINTS[kind](student, teacher, views())
    torch.testing.assert_close(student_BC, teacher_BC)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    learner: nn.Module = network(width=0.25)
    learner = FeatureProjector(learner, feature_dim(teacher), 0) if kind == "features" else learner
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        loss = HINTS[kind](learner, teacher, views())[2]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_loss_adds_the_hint(weight: float) -> None:
    teacher, student = network(seed=1), network(width=0.25)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([0, 1, -1, 2])
    no_augmentation = {"augmentation": {"crop_scale_min": 1.0, "flip": False}}
    losses = [
        distillation_loss(settings(hint=kind, hint_weight=weight, **no_augmentation), 16, teacher, teacher)(
            student, images, labels
        ).item()
        for kind in ("none", "attention")
    ]
    hint_loss = HINTS["attention"](student, teacher, normalise(to_float(images)))[2].item()
    assert losses[1] == pytest.approx(losses[0] + weight * hint_loss, rel=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["features", "attention", "pretrained"])
def test_recovery_with_a_hint_trains_the_student_and_keeps_its_structure(tiny_inputs: MethodInputs, kind: str) -> None:
    model = network(width=0.25)
    names = list(model.state_dict())
    curves = recover(model, settings(hint=kind, epochs=4), tiny_inputs)
    assert curves[-1]["loss"] < curves[0]["loss"]
    assert list(model.state_dict()) == names
    without_hint = network(width=0.25)
    recover(without_hint, settings(epochs=4), dataclasses.replace(tiny_inputs, scratch=tiny_inputs.scratch / "plain"))
    assert not torch.equal(without_hint.fc.weight, model.fc.weight)


@pytest.fixture
def taught_inputs(tiny_inputs: MethodInputs, tmp_path: Path) -> MethodInputs:
    """Return inputs with embeddings of a teacher, eight numbers an image."""
    rows_ND = np.random.default_rng(0).normal(size=(len(tiny_inputs.images.labels_N), 8)).astype(np.float16)
    np.save(tmp_path / "embeddings.npy", rows_ND)
    return dataclasses.replace(tiny_inputs, teacher=tmp_path)


def test_embeddings_are_looked_up_by_image(taught_inputs: MethodInputs) -> None:
    hinted = settings(hint="embeddings", images="all", augmentation={"crop_scale_min": 1.0, "flip": False})
    images_BCHW, indices_B = recovery_batches(hinted, taught_inputs, 0).at(0)
    _, labels_B = recovery_batches(settings(images="all"), taught_inputs, 0).at(0)
    assert taught_inputs.labels_N[indices_B.numpy()].tolist() == labels_B.tolist()
    targets = image_targets(hinted, taught_inputs)
    assert targets is not None
    teacher, student = network(seed=1), with_projector(network(width=0.25), hinted, None, targets).eval()
    loss = distillation_loss(hinted, 16, teacher, None, targets)(student, images_BCHW, indices_B)
    without = distillation_loss(settings(augmentation=hinted.augmentation), 16, teacher)(student, images_BCHW, labels_B)
    rows_ND = np.load(taught_inputs.teacher / "embeddings.npy").astype(np.float32)
    mean_D = rows_ND[taught_inputs.images.indices(TRAIN)].mean(0)
    rows_BD = torch.from_numpy(rows_ND[indices_B.numpy()] - mean_D)
    _, distance = predict_embeddings(student, normalise(to_float(images_BCHW)), rows_BD)
    assert loss.item() == pytest.approx(without.item() + distance.item(), rel=1e-4)


@pytest.mark.thorough
def test_a_student_learns_embeddings_and_keeps_its_structure(taught_inputs: MethodInputs) -> None:
    model = network(width=0.25)
    names = list(model.state_dict())
    curves = recover(model, settings(hint="embeddings", epochs=4), taught_inputs)
    assert curves[-1]["loss"] < curves[0]["loss"]
    assert list(model.state_dict()) == names


def test_the_pretrained_backbone_comes_from_its_folder(tiny_inputs: MethodInputs) -> None:
    pretrained, dense = tiny_inputs.load_backbone(), load_model(tiny_inputs.dense.folder)[0]
    assert not torch.equal(pretrained.stem[0].weight, dense.stem[0].weight)
    assert not pretrained.training


def test_hints_need_a_teacher() -> None:
    with pytest.raises(ValidationError, match="hint: features needs a teacher; set teacher: auto or dense"):
        settings(hint="features", teacher="none", images="labelled")
    assert settings(hint="pretrained", teacher="none", images="labelled").hint == "pretrained"


def test_damaged_weights_are_an_error(tiny_dense: Path, tmp_path: Path) -> None:
    for file in (tiny_dense.parent.parent / "pretrain").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(Exception, match="is missing or damaged"):
        load_backbone(tmp_path)
