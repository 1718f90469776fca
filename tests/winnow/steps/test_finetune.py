from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_params
from tests.winnow.labels.embedded_project import taught_params, write_embeddings
from winnow.config import Config, check_config
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, load_images
from winnow.data.splits import draw_label_budget
from winnow.deploy.batch_inference import predict_torch
from winnow.errors import ArtifactError, TrainingError
from winnow.models.backbones import load_model
from winnow.records import FinetuneRecord, read_json, record_digest, sha256_of
from winnow.records.candidate_file import LabelCounts
from winnow.steps.finetune import finetune
from winnow.steps.pretrain import pretrain
from winnow.training.stored_pseudo_labels import read_pseudo_labels


def make_config(pretrain_method: str = "rotnet", **changes: Any) -> Config:
    raw = tiny_params()
    raw["finetune"] |= changes
    if pretrain_method == "none":
        raw["pretrain"] = {"method": "none"}
    return check_config(raw)


@pytest.fixture
def pretrained(tiny_dense: Path) -> Path:
    """Return the pretraining of `tiny_dense`."""
    return tiny_dense.parents[1] / "pretrain"


def run(config: Config, data: Path, pretrained: Path, root: Path) -> FinetuneRecord:
    return finetune(config, data, pretrained, root / "dense", root / "scratch")


def test_the_record_describes_the_training(tiny_dense: Path, tiny_data: Path, pretrained: Path) -> None:
    record = FinetuneRecord.read(tiny_dense)
    config = make_config()
    assert (record.step, record.name, record.warnings, record.machine) == ("finetune", "dense", (), None)
    assert record.parameters == config.finetune.model_dump(mode="json")
    assert record.inputs == {"data": record_digest(tiny_data), "pretrain": record_digest(pretrained)}
    details = record.details
    assert (details.method, details.precision, details.lineage) == ("finetune", "f32", ["dense"])
    assert details.labels == LabelCounts(training=110, choosing=60)
    assert [row["epoch"] for row in details.curves] == [1, 2, 3, 4]
    arms, gain = details.arms, details.arms.gain
    assert [row.seed for row in arms.pretrained] == [row.seed for row in arms.scratch] == [0, 1]
    assert [(row.arm, row.seed, row.learning_rate) for row in arms.tried] == [
        ("pretrained", 0, 0.05),
        ("scratch", 0, 0.05),
    ]
    assert gain is not None
    assert (gain.arm, gain.pairs) == ("pretrained", 2)
    assert {artifact.name for artifact in record.artifacts} == {
        "model.onnx",
        "card.json",
        "validation_logits.npy",
        "weights.safetensors",
        "architecture.json",
    }
    for artifact in record.artifacts:
        assert sha256_of(tiny_dense / artifact.name) == artifact.sha256


def test_dense_is_the_first_seed_of_the_pretrained_arm(tiny_dense: Path, tiny_set: ImageSet) -> None:
    record = FinetuneRecord.read(tiny_dense)
    trained = load_file(tiny_dense.parents[1] / "scratch" / "pretrained-seed0-rate0.05.safetensors")
    for name, value in load_file(tiny_dense / "weights.safetensors").items():
        assert torch.equal(value, trained[f"model.{name}"])
    indices = tiny_set.indices(VALIDATION)
    predictions = predict_torch(load_model(tiny_dense)[0], tiny_set.images_NHWC, indices).argmax(1)
    assert record.metrics["quality/top1"] == (predictions == tiny_set.labels_N[indices]).mean()
    assert record.metrics["quality/top1"] == record.details.arms.pretrained[0].top1
    for arm, metric in (("pretrained", "arm"), ("scratch", "scratch")):
        mean = np.mean([row.top1 for row in record.details.arms.trainings(arm)])
        assert record.metrics[f"pretraining/{metric}_top1"] == pytest.approx(mean)
    gain = record.metrics["pretraining/arm_top1"] - record.metrics["pretraining/scratch_top1"]
    assert record.metrics["pretraining/gain_points"] == pytest.approx(gain * 100)


@pytest.mark.thorough
def test_equal_inputs_give_equal_bytes(tiny_dense: Path, tiny_data: Path, pretrained: Path, tmp_path: Path) -> None:
    run(make_config(), tiny_data, pretrained, tmp_path)
    assert (tmp_path / "dense" / "record.json").read_text() == (tiny_dense / "record.json").read_text()
    # With its checkpoints, training is not repeated and the bytes are the same.
    checkpoint_times = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").glob("*.safetensors")}
    shutil.rmtree(tmp_path / "dense")
    run(make_config(), tiny_data, pretrained, tmp_path)
    assert (tmp_path / "dense" / "record.json").read_text() == (tiny_dense / "record.json").read_text()
    assert len(checkpoint_times) == 4
    assert {path: path.stat().st_mtime_ns for path in checkpoint_times} == checkpoint_times


@pytest.mark.thorough
def test_without_pretraining_there_is_only_one_arm(tiny_data: Path, tmp_path: Path) -> None:
    config = make_config("none", epochs=2, min_steps=2, seeds=[3])
    pretrain(config, tiny_data, tmp_path / "pretrain", tmp_path / "none")
    record = run(config, tiny_data, tmp_path / "pretrain", tmp_path)
    arms = record.details.arms
    assert arms.gain is None
    arm_keys = read_json(tmp_path / "dense" / "record.json")["details"]["arms"]
    assert set(arm_keys) == {"scratch", "linear_probe", "tried", "gain"}
    assert record.metrics["quality/top1"] == arms.scratch[0].top1
    assert "pretraining/gain_points" not in record.metrics
    assert record.metrics["pretraining/arm_top1"] == record.metrics["pretraining/scratch_top1"]


@pytest.mark.thorough
def test_own_weights_become_dense(tiny_data: Path, pretrained: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    weights = load_file(pretrained / "weights.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, file)
    record = run(
        make_config(epochs=1, min_steps=1, seeds=[0], weights=str(file)), tiny_data, pretrained, tmp_path / "run"
    )
    arms = record.details.arms
    assert record.inputs["weights"] == sha256_of(file)
    assert arms.gain is not None
    assert arms.gain.arm == "weights"
    # The same backbone under another name gives equal arms.
    assert arms.weights == arms.pretrained != []
    assert [row.arm for row in arms.tried] == ["pretrained", "scratch", "weights"]
    assert str(tmp_path) not in (tmp_path / "run" / "dense" / "record.json").read_text()
    assert record.parameters["weights"] == "mine.safetensors"


def test_damaged_own_weights_are_an_error_that_names_the_key(tiny_data: Path, pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"finetune\.weights: .*mine\.pth"):
        run(make_config(weights=str(tmp_path / "mine.pth")), tiny_data, pretrained, tmp_path / "run")


@pytest.mark.thorough
@pytest.mark.parametrize(("decay", "kept"), [(5e-4, True), (10.0, False)])
def test_training_on_unlabelled_images_is_kept_only_where_it_helps(
    tiny_data: Path, pretrained: Path, tmp_path: Path, decay: float, kept: bool
) -> None:
    unlabelled = {"method": "fixmatch", "epochs": 2, "min_steps": 120, "batch_size": 16}
    unlabelled["optimiser"] = {"learning_rate": 0.05, "weight_decay": decay}
    config = make_config(epochs=1, min_steps=2, seeds=[0, 1], unlabelled=unlabelled, cross_validation="always", folds=2)
    record = run(config, tiny_data, pretrained, tmp_path)
    comparison, arm = record.details.unlabelled, record.details.arms.pretrained
    assert comparison is not None
    assert (comparison.method, comparison.kept) == ("fixmatch", kept)
    assert [(row.seed, row.steps) for row in comparison.trainings] == [(0, 120), (1, 120)]
    mean = np.mean([row.top1 - alone.top1 for row, alone in zip(comparison.trainings, arm, strict=True)])
    assert comparison.gain.mean == pytest.approx(mean * 100)
    assert kept == (mean > 0)
    dense = comparison.trainings[0] if kept else arm[0]
    assert record.metrics["quality/top1"] == dense.top1
    assert record.metrics["unlabelled/top1"] == pytest.approx(np.mean([row.top1 for row in comparison.trainings]))
    assert [row["epoch"] for row in record.details.curves] == ([1, 2, 3] if kept else [1])
    folds = sorted(path.name for path in (tmp_path / "scratch").glob("fold*.safetensors"))
    assert ("fold1of2-unlabelled.safetensors" in folds) == kept


@pytest.mark.thorough
@pytest.mark.parametrize(("learning_rate", "labels_per_class"), [(0.05, 4), (1e-9, 4), (0.05, "all")])
def test_pseudo_labels_that_dense_learned_are_kept_for_its_children(
    tiny_data: Path, pretrained: Path, tmp_path: Path, learning_rate: float, labels_per_class: int | str
) -> None:
    """With a learning rate of almost 0 dense does not improve, so it is the network before and has no pseudo-labels.
    Where most images have a label, children learn from dense.
    """
    shutil.copytree(tiny_data, tmp_path / "data")
    params = taught_params(labels_per_class=labels_per_class)
    unlabelled = {"method": "propagation", "epochs": 2, "min_steps": 60, "batch_size": 16}
    unlabelled["optimiser"] = {"learning_rate": learning_rate}
    params["finetune"] |= {"epochs": 1, "min_steps": 1, "seeds": [0], "unlabelled": unlabelled}
    config = check_config(params)
    write_embeddings(tmp_path, config)
    shutil.copy(pretrained / "architecture.json", tmp_path / "embed")
    record = finetune(config, tiny_data, pretrained, tmp_path / "dense", tmp_path / "scratch", tmp_path / "embed")
    assert record.details.unlabelled is not None
    images = load_images(tiny_data)
    stored_NC = read_pseudo_labels(tmp_path / "dense", images)
    names = {artifact.name for artifact in record.artifacts}
    is_kept = record.details.unlabelled.kept and labels_per_class == 4
    assert (stored_NC is not None) == is_kept == ("pseudo_labels.npy" in names)
    assert is_kept == (learning_rate == 0.05 and labels_per_class == 4)
    if stored_NC is None:
        return
    train, budget = images.indices(TRAIN), draw_label_budget(images, 4, 0)
    np.testing.assert_allclose(stored_NC[train].sum(1), 1, atol=2e-3)
    assert (stored_NC[budget, images.labels_N[budget]] == 1).all()
    assert not stored_NC[np.setdiff1d(np.arange(len(stored_NC)), train)].any()


@pytest.mark.parametrize("name", ["weights.safetensors", "architecture.json", "record.json"])
@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_damaged_pretraining_changes_nothing(
    tiny_data: Path, pretrained: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    damaged = Path(shutil.copytree(pretrained, tmp_path / "pretrain"))
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "old").write_text("kept")
    with pytest.raises(ArtifactError, match=rf"{name} is (missing|damaged)"):
        run(make_config(), tiny_data, damaged, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "pretrain"]
    assert [path.name for path in (tmp_path / "dense").iterdir()] == ["old"]


def test_a_diverging_training_writes_nothing(tiny_data: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(make_config(learning_rates=[1e30]), tiny_data, pretrained, tmp_path)
    assert not (tmp_path / "dense").exists()
    assert not list(tmp_path.glob(".dense*"))
