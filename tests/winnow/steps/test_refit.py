"""The refit step on real tiny networks: it happens, it does not, it is refused, and it goes on after a stop."""

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
)
from winnow.records.candidate import ArmTraining
from winnow.records.refit import RefitLabels
from winnow.refit.deployed_folder import deployed_folder, refit_record, selected_folder
from winnow.steps.refit import refit


def configured(when: str = "auto", **sections: Any) -> Config:
    params = tiny_params()
    params["refit"]["when"] = when
    for section, changes in sections.items():
        params[section] |= changes
    return check_config(params)


@pytest.fixture
def artifacts(
    tiny_data: Path, tiny_dense: Path, tiny_candidate: Callable[[str], Path], tmp_path: Path
) -> Callable[[str | None], Path]:
    """Winner -> a copy of what the steps before leave, as far as a refit reads it."""

    def leave(winner: str | None) -> Path:
        at = tmp_path / "artifacts"
        shutil.copytree(tiny_data, at / "data")
        shutil.copytree(tiny_dense.parent.parent / "pretrain", at / "pretrain")
        for name in CandidateRecord.read(tiny_candidate(winner)).details.lineage if winner else ["dense"]:
            shutil.copytree(tiny_candidate(name) if name != "dense" else tiny_dense, at / "candidates" / name)
        (at / "select").mkdir()
        write_json(at / "select" / "winner.json", {"winner": winner})
        return at

    return leave


def run(artifacts: Path, config: Config, scratch: str = "scratch") -> RefitRecord:
    return refit(config, artifacts, artifacts / "refit", artifacts.parent / scratch)


@pytest.mark.thorough
def test_with_few_labels_the_winner_learns_the_validation_labels(artifacts: Callable[[str], Path]) -> None:
    at = artifacts("pruned-int8")
    record = run(at, configured())
    folder, selected = at / "refit", at / "candidates" / "pruned-int8"
    assert read_record(folder) == record
    assert record.details.is_refitted
    assert record.details.labels == RefitLabels(training=110, choosing=60, deployed=170)
    assert record.metrics["refit/labels"] == 170
    assert list(record.details.trainings) == ["dense", "pruned", "pruned-int8"]
    # 180 images in place of 120 are five batches of 32 in place of three, twice.
    assert len(record.details.trainings["pruned"]) == 2
    assert sha256_of(folder / "model.onnx") != sha256_of(selected / "model.onnx")
    assert sha256_of(folder / "selected" / "model.onnx") == sha256_of(selected / "model.onnx")
    assert deployed_folder(at, "pruned-int8") == folder
    assert selected_folder(folder) == folder / "selected"
    assert {artifact.name for artifact in record.artifacts} == {
        *("model.onnx", "architecture.json", "card.json", "selected/model.onnx")
    }
    card, before = read_json(folder / "card.json"), read_json(selected / "card.json")
    assert card["labels"] == {"training": 170, "choosing": 60}
    assert (card["temperature"], card["metrics"]) == (before["temperature"], before["metrics"])
    assert card["refit"]["selected_sha256"] == sha256_of(selected / "model.onnx")
    assert "before the refit" in card["measured_on"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (configured("never"), "refit.when is never"),
        (configured(data={"labels_per_class": 10}), "limits training to 10 labels per class"),
    ],
)
def test_where_it_is_not_asked_for_nothing_is_trained(
    config: Config, reason: str, artifacts: Callable[[str], Path]
) -> None:
    at = artifacts("pruned-int8")
    record = run(at, config)
    assert not record.details.is_refitted
    assert reason in record.details.why
    assert record.details.labels.deployed == record.details.labels.training
    assert (record.warnings, record.artifacts) == ((), ())
    assert [path.name for path in (at / "refit").iterdir()] == ["record.json"]
    assert not (at.parent / "scratch").exists()
    assert deployed_folder(at, "pruned-int8") == at / "candidates" / "pruned-int8"


def test_labels_are_not_few_from_500_on_and_a_budget_gives_way_when_asked() -> None:
    assert configured().refit.reason_against(499, None) == ""
    assert "500 validation images have a label" in configured().refit.reason_against(500, None)
    assert configured("always").refit.reason_against(5000, 25) == ""
    assert "no validation image has a label" in configured("always").refit.reason_against(0, None)


@pytest.mark.thorough
def test_a_budget_stays_a_budget_for_training_labels(artifacts: Callable[[str], Path]) -> None:
    at = artifacts("pruned")
    record = run(at, configured("always", data={"labels_per_class": 10}))
    assert record.details.labels.deployed == 10 * len(CLASSES) + 60


def test_without_a_winner_nothing_is_trained(artifacts: Callable[[str | None], Path]) -> None:
    record = run(artifacts(None), configured())
    assert (record.details.winner, record.details.is_refitted) == (None, False)
    assert "no candidate has won" in record.details.why


def mislabel(data: Path, unlabelled: int) -> None:
    """Give labelled validation images the next class, three times over, and add validation images without a label."""
    images = load_images(data)
    at = images.indices(VALIDATION, labelled=True)
    labels = np.array(images.labels_N)
    labels[at] = (labels[at] + 1) % len(CLASSES)
    added = np.resize(images.indices(0), unlabelled)
    order = np.concatenate([np.arange(len(labels)), at, at, added])
    marks = np.concatenate([np.zeros(len(order) - unlabelled, bool), np.ones(unlabelled, bool)])
    for name in ("images", "keys", "split"):
        np.save(data / f"{name}.npy", np.load(data / f"{name}.npy")[order])
    split = np.load(data / "split.npy")
    split[marks] = VALIDATION
    np.save(data / "split.npy", split)
    labels = labels[order]
    labels[marks] = -1
    np.save(data / "labels.npy", labels)


@pytest.mark.thorough
@pytest.mark.parametrize(("unlabelled", "kind"), [(100, "validation images without a label"), (0, "training images")])
def test_a_refit_on_wrong_labels_is_refused(artifacts: Callable[[str], Path], unlabelled: int, kind: str) -> None:
    at = artifacts("pruned-int8")
    mislabel(at / "data", unlabelled)
    record = run(at, configured("always", data={"labels_per_class": 5}))
    assert record.details.check is not None
    assert record.details.check.kind == kind
    assert record.details.check.kappa < 0.4
    assert not record.details.is_refitted
    assert "less than refit.min_kappa 0.4" in record.details.why
    assert record.warnings == (record.details.why,)
    assert record.details.labels.deployed == 110
    assert [path.name for path in (at / "refit").iterdir()] == ["record.json"]
    assert deployed_folder(at, "pruned-int8") == at / "candidates" / "pruned-int8"


def test_a_training_that_diverges_leaves_the_selected_file(artifacts: Callable[[str], Path]) -> None:
    at = artifacts("pruned-int8")
    arms = FinetuneRecord.read(at / "candidates" / "dense").details.arms
    diverging = [ArmTraining(seed=0, learning_rate=1e20, steps=24, top1=0.9)]
    rewrite_details(at / "candidates" / "dense", arms=arms.model_copy(update={"pretrained": diverging}))
    record = run(at, configured())
    assert "its training failed: the loss is no longer a number" in record.details.why
    assert (record.details.is_refitted, len(record.warnings)) == (False, 1)


@pytest.mark.thorough
def test_the_step_reads_neither_times_nor_the_test_split(artifacts: Callable[[str], Path]) -> None:
    at = artifacts("pruned-int8")
    images = np.load(at / "data" / "images.npy")
    images[np.load(at / "data" / "split.npy") == 2] = 0
    first = run(at, configured())
    digest = sha256_of(at / "refit" / "model.onnx")
    np.save(at / "data" / "images.npy", images)
    assert run(at, configured(), "again").metrics == first.metrics
    assert sha256_of(at / "refit" / "model.onnx") == digest
    assert sorted(path.name for path in (at / "select").iterdir()) == ["winner.json"]


@pytest.mark.thorough
def test_an_interrupted_refit_goes_on_and_ends_the_same(artifacts: Callable[[str], Path], tmp_path: Path) -> None:
    at = artifacts("pruned-int8")
    expected = run(at, configured(), "whole")
    before = (at / "refit" / "record.json").read_bytes()
    # As a process leaves it that was killed after dense, within the recovery of pruned.
    shutil.copytree(tmp_path / "whole" / "dense", tmp_path / "stopped" / "dense")
    checkpoint = tmp_path / "stopped" / "dense" / "finetune.safetensors"
    trained = checkpoint.stat().st_mtime_ns
    assert run(at, configured(), "stopped") == expected
    assert checkpoint.stat().st_mtime_ns == trained, "dense was trained again"
    assert (at / "refit" / "record.json").read_bytes() == before


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sparse", "student"])
def test_what_a_method_made_stays(name: str, artifacts: Callable[[str], Path]) -> None:
    at = artifacts(name)
    record = run(at, configured())
    assert record.details.is_refitted, record.details.why
    (before, was), (after, now) = load_model(at / "candidates" / name), load_model(at / "refit")
    assert was == now
    for (path, old), new in zip(weight_layers(before).items(), weight_layers(after).values(), strict=True):
        assert old.weight.shape == new.weight.shape
        assert not torch.equal(old.weight, new.weight), path
        if name == "sparse":
            assert torch.equal(old.weight == 0, new.weight == 0), path


def test_a_refit_of_another_winner_is_not_deployed(artifacts: Callable[[str], Path]) -> None:
    at = artifacts("pruned-int8")
    run(at, configured("never"))
    rewrite(at / "candidates" / "pruned-int8", warnings=("changed",))
    with pytest.raises(ArtifactError, match="does not belong to the current pruned-int8"):
        refit_record(at, "pruned-int8")
