"""Test the refit step on tiny networks: refitted, not refitted, refused, and resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CLASSES, tiny_params
from tests.tiny_run import rewrite, rewrite_details
from tests.winnow.labels.embedded_project import taught_params, write_embeddings
from winnow.config import Config, check_config
from winnow.data.dataset import VALIDATION, load_images
from winnow.errors import ArtifactError
from winnow.models.backbones import load_model
from winnow.models.layers import weight_layers
from winnow.records import (
    CandidateRecord,
    FinetuneRecord,
    RefitRecord,
    read_json,
    read_record,
    sha256_of,
    write_json,
    write_record,
)
from winnow.records.finetune import ArmTraining, PretrainingGain, UnlabelledComparison
from winnow.records.refit import RefitLabels
from winnow.refit.deployed_folder import deployed_folder, refit_record, selected_folder
from winnow.steps.refit import refit
from winnow.training.stored_pseudo_labels import write_pseudo_labels


def make_config(when: str = "auto", **sections: Any) -> Config:
    params = tiny_params()
    params["refit"]["when"] = when
    for section, changes in sections.items():
        params[section] |= changes
    return check_config(params)


@pytest.fixture
def artifacts(
    tiny_data: Path, tiny_dense: Path, tiny_candidate: Callable[[str], Path], tmp_path: Path
) -> Callable[[str | None], Path]:
    """Return a function from a winner to a copy of the artifacts that a refit reads."""

    def copy_artifacts(winner: str | None) -> Path:
        root = tmp_path / "artifacts"
        shutil.copytree(tiny_data, root / "data")
        shutil.copytree(tiny_dense.parent.parent / "pretrain", root / "pretrain")
        for name in CandidateRecord.read(tiny_candidate(winner)).details.lineage if winner else ["dense"]:
            shutil.copytree(tiny_candidate(name) if name != "dense" else tiny_dense, root / "candidates" / name)
        (root / "select").mkdir()
        write_json(root / "select" / "winner.json", {"winner": winner})
        return root

    return copy_artifacts


def run(artifacts: Path, config: Config, scratch: str = "scratch") -> RefitRecord:
    return refit(config, artifacts, artifacts / "refit", artifacts.parent / scratch)


@pytest.mark.thorough
def test_with_few_labels_the_winner_is_refitted_on_validation_labels(artifacts: Callable[[str], Path]) -> None:
    root = artifacts("pruned-int8")
    record = run(root, make_config())
    folder, selected = root / "refit", root / "candidates" / "pruned-int8"
    assert read_record(folder) == record
    assert record.details.is_refitted
    assert record.details.labels == RefitLabels(training=110, choosing=60, deployed=170)
    assert record.metrics["refit/labels"] == 170
    assert list(record.details.trainings) == ["dense", "pruned", "pruned-int8"]
    # 180 images instead of 120 are five batches of 32 instead of three, twice.
    assert len(record.details.trainings["pruned"]) == 2
    assert sha256_of(folder / "model.onnx") != sha256_of(selected / "model.onnx")
    assert sha256_of(folder / "selected" / "model.onnx") == sha256_of(selected / "model.onnx")
    assert deployed_folder(root, "pruned-int8") == folder
    assert selected_folder(folder) == folder / "selected"
    assert {artifact.name for artifact in record.artifacts} == {
        *("model.onnx", "architecture.json", "card.json", "selected/model.onnx")
    }
    card, selected_card = read_json(folder / "card.json"), read_json(selected / "card.json")
    assert card["labels"] == {"training": 170, "choosing": 60}
    assert (card["temperature"], card["metrics"]) == (selected_card["temperature"], selected_card["metrics"])
    assert card["refit"]["selected_sha256"] == sha256_of(selected / "model.onnx")
    assert "before the refit" in card["measured_on"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (make_config("never"), "refit.when is never"),
        (make_config(data={"labels_per_class": 10}), "limits training to 10 labels per class"),
    ],
)
def test_without_a_refit_nothing_is_trained(config: Config, reason: str, artifacts: Callable[[str], Path]) -> None:
    root = artifacts("pruned-int8")
    record = run(root, config)
    assert not record.details.is_refitted
    assert reason in record.details.why
    assert record.details.labels.deployed == record.details.labels.training
    assert (record.warnings, record.artifacts) == ((), ())
    assert [path.name for path in (root / "refit").iterdir()] == ["record.json"]
    assert not (root.parent / "scratch").exists()
    assert deployed_folder(root, "pruned-int8") == root / "candidates" / "pruned-int8"


def test_reasons_against_a_refit() -> None:
    assert make_config().refit.reason_against(499, None) == ""
    assert "500 validation images have a label" in make_config().refit.reason_against(500, None)
    assert make_config("always").refit.reason_against(5000, 25) == ""
    assert "no validation image has a label" in make_config("always").refit.reason_against(0, None)


@pytest.mark.thorough
def test_the_label_budget_limits_training_labels(artifacts: Callable[[str], Path]) -> None:
    root = artifacts("pruned")
    record = run(root, make_config("always", data={"labels_per_class": 10}))
    assert record.details.labels.deployed == 10 * len(CLASSES) + 60


@pytest.mark.thorough
def test_dense_learns_from_unlabelled_images_again_where_it_did_before(artifacts: Callable[[str], Path]) -> None:
    root, unlabelled = artifacts("pruned"), {"method": "fixmatch", "epochs": 3, "min_steps": 1, "batch_size": 32}
    config = make_config(finetune={"unlabelled": unlabelled})
    dense = FinetuneRecord.read(root / "candidates" / "dense")
    gain = PretrainingGain(arm="unlabelled", mean=1.0, low=1.0, high=1.0, pairs=1)
    for kept, epochs in ((True, 3), (False, 0)):
        comparison = UnlabelledComparison(method="fixmatch", kept=kept, trainings=[], gain=gain)
        details = dense.details.model_copy(update={"unlabelled": comparison})
        write_record(root / "candidates" / "dense", dense.model_copy(update={"details": details}))
        record = run(root, config, scratch=f"scratch-{kept}")
        assert len(record.details.trainings["dense"]) == len(dense.details.curves) + epochs


@pytest.mark.thorough
def test_children_learn_the_pseudo_labels_of_the_refit(
    artifacts: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with the refit's own labels, where the selected dense has some; without them dense's outputs."""
    root = artifacts("pruned")
    params = taught_params()
    params["refit"]["when"] = "auto"
    unlabelled = {"method": "propagation", "epochs": 1, "min_steps": 1, "batch_size": 32}
    params["finetune"] |= {"unlabelled": unlabelled}
    config = check_config(params)
    write_embeddings(root, config)
    dense, images = root / "candidates" / "dense", load_images(root / "data")
    gain = PretrainingGain(arm="unlabelled", mean=1.0, low=1.0, high=1.0, pairs=1)
    comparison = UnlabelledComparison(method="propagation", kept=True, trainings=[], gain=gain)
    rewrite_details(dense, unlabelled=comparison)
    learned: list[np.ndarray | None] = []

    def remember(model: torch.nn.Module, _settings: Any, inputs: Any, **_: Any) -> list[Any]:
        learned.append(inputs.pseudo_labels_NC)
        return []

    monkeypatch.setattr("winnow.refit.training.recover", remember)
    run(root, config, scratch="without")
    assert learned == [None]
    write_pseudo_labels(dense, np.full((len(images.labels_N), 3), 1 / 3, dtype=np.float32), images)
    run(root, config, scratch="with")
    assert learned[1] is not None
    validation = images.indices(VALIDATION, labelled=True)
    assert (learned[1][validation, images.labels_N[validation]] == 1).all()


def test_without_a_winner_nothing_is_trained(artifacts: Callable[[str | None], Path]) -> None:
    record = run(artifacts(None), make_config())
    assert (record.details.winner, record.details.is_refitted) == (None, False)
    assert "no candidate has won" in record.details.why


def mislabel(data: Path, unlabelled: int) -> None:
    """Shift the labels of validation images by one class, three times each, and add unlabelled validation images."""
    images = load_images(data)
    labelled = images.indices(VALIDATION, labelled=True)
    labels = np.array(images.labels_N)
    labels[labelled] = (labels[labelled] + 1) % len(CLASSES)
    added = np.resize(images.indices(0), unlabelled)
    order = np.concatenate([np.arange(len(labels)), labelled, labelled, added])
    is_added = np.concatenate([np.zeros(len(order) - unlabelled, bool), np.ones(unlabelled, bool)])
    for name in ("images", "keys", "split"):
        np.save(data / f"{name}.npy", np.load(data / f"{name}.npy")[order])
    split = np.load(data / "split.npy")
    split[is_added] = VALIDATION
    np.save(data / "split.npy", split)
    labels = labels[order]
    labels[is_added] = -1
    np.save(data / "labels.npy", labels)


@pytest.mark.thorough
@pytest.mark.parametrize(("unlabelled", "kind"), [(100, "validation images without a label"), (0, "training images")])
def test_a_refit_on_wrong_labels_is_refused(artifacts: Callable[[str], Path], unlabelled: int, kind: str) -> None:
    root = artifacts("pruned-int8")
    mislabel(root / "data", unlabelled)
    record = run(root, make_config("always", data={"labels_per_class": 5}))
    assert record.details.check is not None
    assert record.details.check.kind == kind
    assert record.details.check.kappa < 0.4
    assert not record.details.is_refitted
    assert "less than refit.min_kappa 0.4" in record.details.why
    assert record.warnings == (record.details.why,)
    assert record.details.labels.deployed == 110
    assert [path.name for path in (root / "refit").iterdir()] == ["record.json"]
    assert deployed_folder(root, "pruned-int8") == root / "candidates" / "pruned-int8"


def test_a_diverging_training_keeps_the_selected_file(artifacts: Callable[[str], Path]) -> None:
    root = artifacts("pruned-int8")
    arms = FinetuneRecord.read(root / "candidates" / "dense").details.arms
    diverging = [ArmTraining(seed=0, learning_rate=1e20, steps=24, top1=0.9)]
    rewrite_details(root / "candidates" / "dense", arms=arms.model_copy(update={"pretrained": diverging}))
    record = run(root, make_config())
    assert "its training failed: the loss is no longer a number" in record.details.why
    assert (record.details.is_refitted, len(record.warnings)) == (False, 1)


@pytest.mark.thorough
def test_a_refit_reads_neither_timings_nor_the_test_split(artifacts: Callable[[str], Path]) -> None:
    root = artifacts("pruned-int8")
    images = np.load(root / "data" / "images.npy")
    images[np.load(root / "data" / "split.npy") == 2] = 0
    record = run(root, make_config())
    digest = sha256_of(root / "refit" / "model.onnx")
    np.save(root / "data" / "images.npy", images)
    assert run(root, make_config(), "again").metrics == record.metrics
    assert sha256_of(root / "refit" / "model.onnx") == digest
    assert sorted(path.name for path in (root / "select").iterdir()) == ["winner.json"]


@pytest.mark.thorough
def test_an_interrupted_refit_resumes_to_the_same_bytes(artifacts: Callable[[str], Path], tmp_path: Path) -> None:
    root = artifacts("pruned-int8")
    expected = run(root, make_config(), "whole")
    content = (root / "refit" / "record.json").read_bytes()
    # The state after a kill during the recovery of pruned.
    shutil.copytree(tmp_path / "whole" / "dense", tmp_path / "stopped" / "dense")
    checkpoint = tmp_path / "stopped" / "dense" / "finetune.safetensors"
    checkpoint_time = checkpoint.stat().st_mtime_ns
    assert run(root, make_config(), "stopped") == expected
    assert checkpoint.stat().st_mtime_ns == checkpoint_time, "dense was trained again"
    assert (root / "refit" / "record.json").read_bytes() == content


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sparse", "student"])
def test_a_refit_keeps_the_structure_of_the_method(name: str, artifacts: Callable[[str], Path]) -> None:
    root = artifacts(name)
    record = run(root, make_config())
    assert record.details.is_refitted, record.details.why
    (selected, selected_architecture), (refitted, refitted_architecture) = (
        load_model(root / "candidates" / name),
        load_model(root / "refit"),
    )
    assert selected_architecture == refitted_architecture
    for (path, selected_layer), refitted_layer in zip(
        weight_layers(selected).items(), weight_layers(refitted).values(), strict=True
    ):
        assert selected_layer.weight.shape == refitted_layer.weight.shape
        assert not torch.equal(selected_layer.weight, refitted_layer.weight), path
        if name == "sparse":
            assert torch.equal(selected_layer.weight == 0, refitted_layer.weight == 0), path


def test_a_refit_of_another_winner_is_not_deployed(artifacts: Callable[[str], Path]) -> None:
    root = artifacts("pruned-int8")
    run(root, make_config("never"))
    rewrite(root / "candidates" / "pruned-int8", warnings=("changed",))
    with pytest.raises(ArtifactError, match="does not belong to the current pruned-int8"):
        refit_record(root, "pruned-int8")
