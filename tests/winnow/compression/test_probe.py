from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import tiny_params
from winnow.compression import write_candidate
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.probe import ABSENT_CLASS_LOGIT, linear_layer
from winnow.config import Config, Probe, check_config
from winnow.data.augmentation import MEAN, STD
from winnow.data.dataset import TEST, VALIDATION, ImageSet
from winnow.deploy.batch_inference import embed, predict_file, predict_torch
from winnow.deploy.feature_extraction import embed_images, open_features
from winnow.deploy.teacher_embeddings import EMBEDDINGS_FILE, load_embeddings
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import Architecture, build_model, load_model, save_model
from winnow.models.input_adapter import InputSpec
from winnow.training.linear_probe import fit_probe

SETTINGS = Probe.model_validate({"from": "dense", "method": "probe"})


@pytest.fixture
def taught_inputs(
    tiny_inputs: MethodInputs, tiny_set: ImageSet, tmp_path: Path, request: pytest.FixtureRequest
) -> MethodInputs:
    """The inputs of a method, with a teacher: a small network of timm, or the backbone that the test names."""
    spec = InputSpec(size=32, mean=MEAN, std=STD)
    architecture = Architecture(
        backbone=getattr(request, "param", "timm:mobilenetv3_small_050"),
        num_classes=len(tiny_set.classes),
        image_size=tiny_set.image_size,
        input=spec,
    )
    model, folder = build_model(architecture), tmp_path / "teacher"
    folder.mkdir()
    save_model(folder, model.eval(), architecture)
    selected = np.flatnonzero(tiny_set.split_N != TEST)
    embed_images(open_features(model, architecture, folder, len(selected)), tiny_set, selected, folder)
    return dataclasses.replace(tiny_inputs, teacher=folder)


@pytest.mark.parametrize(
    "taught_inputs", ["timm:mobilenetv3_small_050", "convnext_tiny", "mobilenet_v3_small"], indirect=True
)
def test_the_file_answers_as_logistic_regression(
    taught_inputs: MethodInputs, tiny_set: ImageSet, tmp_path: Path
) -> None:
    assert taught_inputs.teacher is not None
    out = tmp_path / "out"
    out.mkdir()
    result = write_candidate(SETTINGS, taught_inputs, out)
    validation, rows_ND = tiny_set.indices(VALIDATION), load_embeddings(taught_inputs.teacher)
    features_ND = np.asarray(rows_ND, np.float32)
    assert result.features == features_ND.shape[1]
    budget = taught_inputs.budget
    fitted = fit_probe(features_ND[budget], tiny_set.labels_N[budget], SETTINGS.inverse_regularisation)
    logits_NC = predict_file(out / "model.onnx", tiny_set.images_NHWC, validation)
    probabilities_NC = torch.from_numpy(logits_NC).softmax(1).numpy()
    np.testing.assert_allclose(probabilities_NC, fitted.predict_proba(features_ND[validation]), atol=0.02)
    model, _ = load_model(out)
    np.testing.assert_allclose(predict_torch(model, tiny_set.images_NHWC, validation), logits_NC, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_layer_is_the_standardiser_and_the_regression(classes: int) -> None:
    rng = np.random.default_rng(0)
    features_ND = rng.normal(3.0, 2.0, (60, 5)).astype(np.float32)
    labels_N = np.arange(60) % classes
    features_ND[:, 0] += labels_N
    fitted = fit_probe(features_ND, labels_N)
    with torch.no_grad():
        logits_NC = linear_layer(fitted, classes)(torch.from_numpy(features_ND))
    np.testing.assert_allclose(logits_NC.softmax(1).numpy(), fitted.predict_proba(features_ND), atol=1e-5)


def test_a_class_without_labels_is_never_predicted() -> None:
    rng = np.random.default_rng(0)
    features_ND = rng.normal(size=(40, 5)).astype(np.float32)
    fitted = fit_probe(features_ND, np.array([0, 2] * 20))
    with torch.no_grad():
        logits_NC = linear_layer(fitted, 3)(torch.from_numpy(features_ND))
    assert (logits_NC[:, 1] == ABSENT_CLASS_LOGIT).all()
    assert set(logits_NC.argmax(1).tolist()) == {0, 2}


def test_the_same_inputs_give_the_same_bytes(taught_inputs: MethodInputs, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_candidate(SETTINGS, taught_inputs, tmp_path / name)
    files = [(tmp_path / name / "model.onnx").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]


def test_embeddings_of_another_width_are_refused(taught_inputs: MethodInputs, tmp_path: Path) -> None:
    assert taught_inputs.teacher is not None
    rows_ND = np.array(load_embeddings(taught_inputs.teacher))
    np.save(taught_inputs.teacher / EMBEDDINGS_FILE, rows_ND[:, :-1])
    with pytest.raises(ArtifactError):
        write_candidate(SETTINGS, taught_inputs, tmp_path)


def test_features_do_not_change(taught_inputs: MethodInputs, tiny_set: ImageSet, tmp_path: Path) -> None:
    """The head is fitted, the network stays frozen."""
    assert taught_inputs.teacher is not None
    write_candidate(SETTINGS, taught_inputs, tmp_path)
    validation = tiny_set.indices(VALIDATION)
    before, after = (
        embed(load_model(folder)[0], tiny_set.images_NHWC, validation) for folder in (taught_inputs.teacher, tmp_path)
    )
    assert torch.equal(before, after)


def configured(**candidates: dict[str, object]) -> Config:
    raw = tiny_params()
    return check_config(raw | {"candidates": {**raw["candidates"], **candidates}})


def test_a_probe_needs_a_teacher() -> None:
    with pytest.raises(ConfigError, match=r"candidates\.large\.method: probe needs a teacher"):
        configured(large={"from": "dense", "method": "probe"})


def test_only_int8_is_made_from_a_probe() -> None:
    raw = tiny_params()
    raw["teacher"] = {"weights": "package:efficientnet-lite0"}
    raw["candidates"] |= {
        "large": {"from": "dense", "method": "probe"},
        "large-int8": {"from": "large", "method": "quantize"},
    }
    assert "large-int8" in check_config(raw).candidates
    raw["candidates"]["small"] = {**raw["candidates"]["pruned"], "from": "large"}
    with pytest.raises(ConfigError, match=r"candidates\.small\.from: 'large' is the frozen teacher"):
        check_config(raw)
