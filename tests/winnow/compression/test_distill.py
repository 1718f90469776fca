from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_params
from winnow.compression import write_candidate
from winnow.compression.method_inputs import MethodInputs, NetworkFolder, backbone_loader
from winnow.config import Distill, check_config
from winnow.data.dataset import VALIDATION
from winnow.deploy.batch_inference import predict_file
from winnow.evaluation.metrics import agreement
from winnow.models.backbones import build_model, load_model, save_model
from winnow.models.classifier_head import backbone_weights
from winnow.records import sha256_of
from winnow.records.method_results import DistillResult
from winnow.steps.pretrain import pretrain

NO_LEARNING = {"learning_rate": 1e-12, "weight_decay": 0.0}


def settings(recovery: dict[str, Any] | None = None, **changes: Any) -> Distill:
    training = {"epochs": 1, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.05}, **(recovery or {})}
    return Distill.model_validate({"from": "dense", "method": "distill", "recovery": training, **changes})


WITHOUT_TEACHER = settings({"teacher": "none", "images": "labelled"}, student="resnet8", width=0.25)


def train_student(settings: Distill, inputs: MethodInputs, folder: Path) -> dict[str, torch.Tensor]:
    """Train a student in `folder`, with its own checkpoints, and return its weights."""
    folder.mkdir()
    write_candidate(settings, dataclasses.replace(inputs, scratch=folder / "scratch"), folder)
    return load_file(folder / "weights.safetensors")


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.thorough
def test_same_starts_from_the_parent(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    student = train_student(settings({"optimiser": NO_LEARNING}), tiny_inputs, tmp_path / "student")
    parent, architecture = load_model(tiny_inputs.parent.folder)
    assert load_model(tmp_path / "student")[1] == architecture
    for name, value in parent.named_parameters():
        torch.testing.assert_close(student[name], value.detach(), rtol=0, atol=1e-8)
    trained = train_student(settings(), tiny_inputs, tmp_path / "moved")
    assert all((trained[name] != student[name]).any() for name, _ in parent.named_parameters())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "expected"), [({}, "pretrain"), ({"start": "random"}, "random"), ({"width": 0.5}, "random")]
)
def test_a_student_of_the_pretrained_shapes_starts_from_them(
    tiny_inputs: MethodInputs, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    config = settings({"optimiser": NO_LEARNING}, student="resnet8", **changes)
    result = write_candidate(config, tiny_inputs, folder)
    assert isinstance(result, DistillResult)
    assert result.start == expected
    student = load_model(folder)[0]
    assert tiny_inputs.load_backbone is not None
    pretrained = backbone_weights(tiny_inputs.load_backbone())
    is_equal = all(
        value.shape == pretrained[name].shape and torch.allclose(value, pretrained[name], rtol=0, atol=1e-8)
        for name, value in student.named_parameters()
        if name in pretrained
    )
    assert is_equal == (expected == "pretrain")


@pytest.mark.parametrize(("method", "is_loaded"), [("none", False), ("rotnet", True)])
def test_random_weights_of_pretrain_are_no_start(tiny_data: Path, tmp_path: Path, method: str, is_loaded: bool) -> None:
    params = tiny_params()
    params["pretrain"] |= {"method": method, "epochs": 1}
    pretrain(check_config(params), tiny_data, tmp_path / "pretrain", tmp_path / "scratch")
    loader = backbone_loader(tmp_path / "pretrain")
    assert (loader is not None) == is_loaded


@pytest.mark.thorough
def test_same_of_a_pruned_parent_stays_pruned(
    tiny_inputs: MethodInputs, tmp_path: Path, tiny_candidate: Callable[[str], Path]
) -> None:
    pruned = tiny_candidate("pruned")
    student = train_student(
        settings(), dataclasses.replace(tiny_inputs, parent=NetworkFolder(pruned)), tmp_path / "student"
    )
    assert {name: value.shape for name, value in student.items()} == {
        name: value.shape for name, value in load_file(pruned / "weights.safetensors").items()
    }


def resnet8_parameters(channels: list[int], classes: int) -> int:
    """Count the parameters: 3x3 stem, blocks of two 3x3 convolutions, 1x1 shortcuts at a new width, linear head."""
    total, previous = 9 * 3 * channels[0] + 2 * channels[0], channels[0]
    for width in channels:
        total += 9 * previous * width + 9 * width * width + 4 * width
        total += previous * width + 2 * width if width != previous else 0
        previous = width
    return total + previous * classes + classes


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "channels"), [(0.5, [24, 48, 96]), (0.25, [16, 24, 48])])
def test_width_scales_the_student(tiny_inputs: MethodInputs, tmp_path: Path, width: float, channels: list[int]) -> None:
    train_student(settings(student="resnet8", width=width), tiny_inputs, tmp_path / "student")
    model, architecture = load_model(tmp_path / "student")
    assert architecture.width == width
    assert sum(parameter.numel() for parameter in model.parameters()) == resnet8_parameters(channels, 3)


@pytest.mark.thorough
def test_another_student_inherits_neither_pruning_nor_ranks(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    parent = Path(shutil.copytree(tiny_inputs.parent.folder, tmp_path / "factorized"))
    _, architecture = load_model(parent)
    factorized = architecture.model_copy(update={"ranks": {"blocks.1.conv2": 4}})
    save_model(parent, build_model(factorized), factorized)
    train_student(
        settings(student="resnet8", width=0.25),
        dataclasses.replace(tiny_inputs, parent=NetworkFolder(parent)),
        tmp_path / "student",
    )
    student, architecture = load_model(tmp_path / "student")
    assert (architecture.pruning, architecture.ranks) == ([], {})
    assert sum(parameter.numel() for parameter in student.parameters()) == resnet8_parameters([16, 24, 48], 3)


@pytest.mark.slow
def test_a_student_without_teacher_does_not_depend_on_dense(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    changed_dense = Path(shutil.copytree(tiny_inputs.dense.folder, tmp_path / "other"))
    weights = load_file(changed_dense / "weights.safetensors")
    save_file({name: value.flip(0).clone() for name, value in weights.items()}, changed_dense / "weights.safetensors")
    changed_inputs = dataclasses.replace(
        tiny_inputs, parent=NetworkFolder(changed_dense), dense=NetworkFolder(changed_dense)
    )
    student = train_student(WITHOUT_TEACHER, tiny_inputs, tmp_path / "alone")
    assert are_equal(student, train_student(WITHOUT_TEACHER, changed_inputs, tmp_path / "alone-again"))
    for file in ("weights.safetensors", "model.onnx", "architecture.json"):
        assert sha256_of(tmp_path / "alone" / file) == sha256_of(tmp_path / "alone-again" / file)
    with_teacher = settings(student="resnet8", width=0.25)
    assert not are_equal(
        train_student(with_teacher, tiny_inputs, tmp_path / "taught"),
        train_student(with_teacher, changed_inputs, tmp_path / "taught-wrong"),
    )
    assert not are_equal(student, load_file(tmp_path / "taught" / "weights.safetensors"))


@pytest.mark.thorough
def test_student_learns_the_predictions_of_dense(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    """The teacher shifts every class by one; the labels have almost no weight."""
    shifted_teacher = Path(shutil.copytree(tiny_inputs.dense.folder, tmp_path / "wrong"))
    weights = load_file(shifted_teacher / "weights.safetensors")
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name].roll(1, dims=0)
    save_file(weights, shifted_teacher / "weights.safetensors")
    config = settings({"epochs": 8, "teacher_weight": 1.0}, student="resnet8", width=0.5)
    (tmp_path / "student").mkdir()
    details = write_candidate(
        config, dataclasses.replace(tiny_inputs, dense=NetworkFolder(shifted_teacher)), tmp_path / "student"
    )
    assert details.teacher == "dense"
    assert len(details.curves) == 8
    images = tiny_inputs.images
    indices = images.indices(VALIDATION)
    logits = predict_file(tmp_path / "student" / "model.onnx", images.images_NHWC, indices)
    expected = np.eye(3, dtype=np.float32)[(images.labels_N[indices] + 1) % 3]
    assert agreement(logits, expected) > 0.9
