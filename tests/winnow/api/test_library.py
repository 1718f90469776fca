"""Check the library in memory: its page runs, its names are documented, its results equal those of the steps."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import winnow
from tests.closure import ROOT
from winnow.data.dataset import TRAIN, ImageSet
from winnow.data.preprocessing import Preprocessing
from winnow.errors import ConfigError, DataError
from winnow.models.backbones import load_model

PAGE = ROOT / "docs" / "library.md"
SHORT_TRAINING = {"epochs": 1, "min_steps": 1}


def weights(network: winnow.Network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.model.state_dict().items()}


@pytest.mark.thorough
def test_every_code_block_of_the_page_runs(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert image_folder == tmp_path / "photos"
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert {"pruned", "student", "factorized", "sparse", "clustered", "int8", "again"} <= names.keys()
    rows = names["rows"]
    assert {row.candidate for row in rows} == {"dense", "student-int8"}
    assert (tmp_path / "deployed" / "model.onnx").is_file()
    assert not (tmp_path / "deployed" / "weights.safetensors").exists()


def test_public_names_are_those_of_the_page() -> None:
    from winnow import api

    text = PAGE.read_text(encoding="utf-8")
    types = {"Accuracy", "ImageSet", "Network", "OnnxNetwork", "Teacher"}
    assert winnow.__all__ == api.__all__ == sorted(api.__all__)
    assert [name for name in winnow.__all__ if f"winnow.{name}(" not in text and name not in types] == []
    assert all(getattr(winnow, name) is getattr(api, name) for name in winnow.__all__)
    with pytest.raises(AttributeError, match="'winnow' has no attribute 'no_such_name'"):
        _ = winnow.no_such_name


def test_import_is_light() -> None:
    code = "import sys, winnow; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.thorough
def test_a_method_equals_its_step(
    network: winnow.Network,
    tiny_set: ImageSet,
    tiny_candidate: Callable[[str], Path],
    tiny_config: winnow.config.Config,
) -> None:
    settings = tiny_config.candidates["pruned"].model_dump(mode="json", exclude={"parent", "method"}, exclude_none=True)
    pruned = winnow.prune(network, tiny_set, **settings)
    expected, architecture = load_model(tiny_candidate("pruned"))
    assert pruned.architecture == architecture
    torch.testing.assert_close(dict(pruned.model.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


@pytest.mark.thorough
def test_a_method_does_not_change_its_network(network: winnow.Network, tiny_set: ImageSet, tmp_path: Path) -> None:
    before = weights(network)
    winnow.prune(network, tiny_set, remove={"channels": 0.3}, recovery=SHORT_TRAINING)
    int8 = winnow.quantize(network, tiny_set, calibration_images=8)
    winnow.finetune(network, tiny_set, **SHORT_TRAINING)
    winnow.save(network, tmp_path / "saved")
    torch.testing.assert_close(weights(network), before, rtol=0, atol=0)
    pixels = np.ascontiguousarray(tiny_set.images_NHWC[:5])
    assert winnow.predict(int8, pixels).shape == (5, 3)
    assert winnow.load(tmp_path / "saved").architecture == network.architecture


def test_a_teacher_can_be_another_network(network: winnow.Network, tiny_set: ImageSet) -> None:
    recovery = SHORT_TRAINING | {"teacher_weight": 1.0}
    other_teacher = winnow.finetune(network, tiny_set, seed=5, **SHORT_TRAINING)
    students = [
        winnow.distill(network, tiny_set, student="resnet8", width=0.5, recovery=recovery, teacher=teacher)
        for teacher in (network, other_teacher, network)
    ]
    assert torch.equal(students[0].model.fc.weight, students[2].model.fc.weight)
    assert not torch.equal(students[0].model.fc.weight, students[1].model.fc.weight)


@pytest.mark.thorough
def test_training_resumes_from_its_checkpoints(
    tiny_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from winnow.training import loop

    uninterrupted = winnow.pretrain(tiny_set, epochs=4, min_steps=1, batch_size=32)

    def stop(epoch: loop.Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    from winnow.pretraining import backbone_training

    with monkeypatch.context() as patch:
        run_to_end = loop.run_to_end
        patch.setattr(backbone_training, "run_to_end", lambda training, _monitor: run_to_end(training, stop))
        with pytest.raises(KeyboardInterrupt):
            winnow.pretrain(tiny_set, epochs=4, min_steps=1, batch_size=32, checkpoints=tmp_path)
    resumed = winnow.pretrain(tiny_set, epochs=4, min_steps=1, batch_size=32, checkpoints=tmp_path)
    torch.testing.assert_close(weights(resumed), weights(uninterrupted), rtol=0, atol=0)


@pytest.mark.thorough
def test_settings_are_checked_like_params(network: winnow.Network, tiny_set: ImageSet) -> None:
    with pytest.raises(ConfigError, match=r"prune has 2 mistakes:\n  remove.channels: .*\n  speed: unknown key"):
        winnow.prune(network, tiny_set, remove={"channels": 2}, speed=1)
    with pytest.raises(ConfigError, match="there is no method 'dino'; valid: distill, none, rotnet, simclr"):
        winnow.pretrain(tiny_set, method="dino")
    with pytest.raises(ConfigError, match="pretrain: method distill needs a teacher"):
        winnow.pretrain(tiny_set, method="distill")
    with pytest.raises(ConfigError, match="finetune: winnow run alone uses cross_validation, seeds"):
        winnow.finetune(network, tiny_set, seeds=[1], cross_validation="always")
    with pytest.raises(ConfigError, match="hint: pretrained needs backbone="):
        winnow.distill(network, tiny_set, recovery=SHORT_TRAINING | {"hint": "pretrained"})
    int8 = winnow.quantize(network, tiny_set, calibration_images=8)
    with pytest.raises(ConfigError, match="prune: an ONNX file cannot be trained"):
        winnow.prune(int8, tiny_set, remove={"channels": 0.3})


@pytest.mark.thorough
def test_a_teacher_gives_targets_and_pseudo_labels(tiny_set: ImageSet, tmp_path: Path) -> None:
    few = winnow.limit_labels(tiny_set, per_class=4)
    teacher = winnow.embed(few, tmp_path / "embedded", input_size=32)
    written = (teacher.folder / "embeddings.npy").read_bytes()
    backbone = winnow.pretrain(few, "distill", teacher=teacher, **SHORT_TRAINING)
    rows = {"method": "propagation", **SHORT_TRAINING}
    labelled = winnow.finetune(backbone, few, **SHORT_TRAINING)
    taught = winnow.finetune(backbone, few, teacher=teacher, unlabelled=rows, **SHORT_TRAINING)
    alone = winnow.finetune(backbone, few, unlabelled=rows, **SHORT_TRAINING)
    networks = [labelled, taught, alone]
    assert len({weights(network)["fc.weight"].numpy().tobytes() for network in networks}) == 3
    assert [known.name for known in taught.architecture.known_weights] == ["package:efficientnet-lite0"]
    pseudo_labels_NC = winnow.pseudo_labels(few, teacher)
    train, labelled = few.indices(TRAIN), few.indices(TRAIN, labelled=True)
    np.testing.assert_allclose(pseudo_labels_NC[train].sum(1), 1, rtol=1e-5)
    assert pseudo_labels_NC[labelled, few.labels_N[labelled]].tolist() == [1.0] * len(labelled)
    untaught = winnow.finetune(winnow.pretrain(few, "none"), few, **SHORT_TRAINING)
    students = [
        winnow.distill(untaught, few, recovery=SHORT_TRAINING, **options)
        for options in ({}, {"pseudo_labels": pseudo_labels_NC, "embeddings": teacher})
    ]
    assert not torch.equal(*(weights(student)["fc.weight"] for student in students))
    assert [len(student.architecture.known_weights) for student in students] == [0, 1]
    hinted = SHORT_TRAINING | {"hint": "embeddings"}
    for changes, message in (
        ({"pseudo_labels": pseudo_labels_NC[:3]}, r"pseudo_labels have shape \(3, 3\), expected"),
        ({"pseudo_labels": pseudo_labels_NC * 2}, "pseudo_labels of training images must sum to 1"),
        ({"embeddings": None}, "pseudo_labels need embeddings="),
        ({"recovery": SHORT_TRAINING | {"teacher": "dense"}}, "pseudo_labels are for a method that trains"),
        ({"recovery": hinted, "embeddings": None, "pseudo_labels": None}, "needs embeddings="),
    ):
        options = {"recovery": SHORT_TRAINING, "pseudo_labels": pseudo_labels_NC, "embeddings": teacher} | changes
        with pytest.raises(ConfigError, match=message):
            winnow.distill(untaught, few, **options)
    large = winnow.probe(teacher, few)
    assert large.architecture.backbone != backbone.architecture.backbone
    assert winnow.evaluate(large, tiny_set).images > 0
    assert (winnow.embed(few, tmp_path / "embedded", input_size=32).folder / "embeddings.npy").read_bytes() == written
    others = winnow.images_from_arrays(np.array(tiny_set.images_NHWC)[::-1], tiny_set.labels_N[::-1], tiny_set.classes)
    padded = replace(few)
    vars(padded)["preprocessing"] = Preprocessing("pad")  # the same files, made square in another way
    for other_images in (others, padded):
        with pytest.raises(DataError, match=r"are of other images; pass these images to winnow\.embed"):
            winnow.pretrain(other_images, "distill", teacher=teacher, **SHORT_TRAINING)


def test_missing_labels_are_an_error(network: winnow.Network, tiny_set: ImageSet) -> None:
    pixels = np.array(tiny_set.images_NHWC)
    unlabelled = winnow.images_from_arrays(pixels, classes=("a", "b", "c"))
    with pytest.raises(DataError, match="no training image has a label"):
        winnow.finetune(network, unlabelled)
    with pytest.raises(DataError, match="no image of the validation split has a label"):
        winnow.evaluate(network, unlabelled)


def test_labels_of_one_class_are_not_propagated(network: winnow.Network, tiny_set: ImageSet, tmp_path: Path) -> None:
    one_class = dataclasses.replace(tiny_set, labels_N=np.where(tiny_set.labels_N == 1, 1, -1))
    np.save(tmp_path / "keys.npy", tiny_set.keys_N16)
    teacher = winnow.Teacher(tmp_path)
    with pytest.raises(DataError):
        winnow.pseudo_labels(one_class, teacher)
    with pytest.raises(DataError):
        winnow.finetune(network, one_class, teacher=teacher, unlabelled={"method": "propagation"}, **SHORT_TRAINING)


def test_labels_are_limited_in_the_training_split_only(tiny_set: ImageSet) -> None:
    limited = winnow.limit_labels(tiny_set, per_class=4)
    labelled = limited.indices(TRAIN, labelled=True)
    assert np.bincount(limited.labels_N[labelled]).tolist() == [4, 4, 4]
    is_not_training = tiny_set.split_N != TRAIN
    assert np.array_equal(limited.labels_N[is_not_training], tiny_set.labels_N[is_not_training])


def names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("store", ["photos", ".", "notes", "photos/disc", "notes/a.txt"])
def test_a_folder_of_something_else_is_not_replaced(image_folder: Path, tmp_path: Path, store: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    before = names(tmp_path)
    with pytest.raises(DataError):
        winnow.read_images(image_folder, tmp_path / store)
    assert names(tmp_path) == before


def test_results_of_another_function_are_not_replaced(image_folder: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.mkdir()  # an empty folder is used
    images = winnow.read_images(image_folder, stored, image_size=16, validation_fraction=0.3)
    before = names(tmp_path)
    with pytest.raises(DataError):
        winnow.embed(images, stored)
    image_folder.rename(stored / "photos")
    with pytest.raises(DataError):
        winnow.read_images(stored / "photos", stored)
    (stored / "photos").rename(image_folder)
    assert names(tmp_path) == before
    again = winnow.read_images(image_folder, stored, image_size=20, validation_fraction=0.3)
    assert again.image_size == 20


@pytest.mark.parametrize("setting", ["mirrors", "colour", "scale", "up", "labels_per_class", "fetch"])
def test_data_settings_that_runs_alone_use_are_refused(image_folder: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError) as exc_info:
        winnow.read_images(image_folder, tmp_path / "stored", **{setting: False})
    assert setting in str(exc_info.value)
    assert not (tmp_path / "stored").exists()
