from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from winnow.data.dataset import TRAIN, VALIDATION, ImageSet
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.candidate_card import finish_candidate
from winnow.errors import ArtifactError
from winnow.evaluation.intervals import wilson_interval
from winnow.records.candidate import CandidateFile, LabelCounts

ALWAYS = {
    "quality/agreement",
    "quality/agreement_parent",
    "size/mb",
    "size/zipped_mb",
    "size/parameters",
    "size/nonzero_parameters",
    "compute/macs",
    "compute/int8_share",
    "quality/temperature",
}
LABELLED = {
    "quality/top1",
    "quality/top1_low",
    "quality/top1_high",
    "quality/macro_precision",
    "quality/macro_recall",
    "quality/macro_f1",
    "quality/ece",
    "quality/ece_calibrated",
    "delta/top1",
}
PARITY = "parity/max_abs_difference"


def finished(
    folder: Path, images: ImageSet, dense: Path | None = None, parent: Path | None = None
) -> tuple[dict[str, float], CandidateFile]:
    return finish_candidate(
        folder,
        name="child",
        method="prune",
        lineage=["dense", "child"],
        images=images,
        budget=images.indices(TRAIN, labelled=True),
        dense=dense,
        parent=parent,
    )


@pytest.fixture
def folder(tiny_dense: Path, tmp_path: Path) -> Path:
    """A copy of dense to spoil."""
    return Path(shutil.copytree(tiny_dense, tmp_path / "child"))


@pytest.fixture
def other(tiny_dense: Path, tmp_path: Path) -> Path:
    """A dense whose first 6 of 60 answers are others, three of them right all the same as far as labels go."""
    path = Path(shutil.copytree(tiny_dense, tmp_path / "other"))
    logits = np.load(path / "validation_logits.npy")
    logits[:6] = np.roll(logits[:6], 1, axis=1)
    np.save(path / "validation_logits.npy", logits)
    return path


def test_the_file_itself_is_measured(folder: Path, tiny_set: ImageSet) -> None:
    (folder / "validation_logits.npy").unlink()
    metrics, details = finished(folder, tiny_set)
    indices = tiny_set.indices(VALIDATION)
    logits = np.load(folder / "validation_logits.npy", allow_pickle=False)
    np.testing.assert_array_equal(logits, predict_file(folder / "model.onnx", tiny_set.images_NHWC, indices))
    right = int((logits.argmax(1) == tiny_set.labels_N[indices]).sum())
    assert set(metrics) == ALWAYS | LABELLED | {PARITY}
    assert metrics["quality/top1"] == right / 60
    assert (metrics["quality/top1_low"], metrics["quality/top1_high"]) == wilson_interval(right, 60)
    assert (metrics["quality/agreement"], metrics["delta/top1"]) == (1.0, 0.0)
    assert 0 < metrics[PARITY] < 1e-3
    assert (details.precision, details.lineage) == ("f32", ["dense", "child"])
    assert details.labels == LabelCounts(training=110, choosing=60)


def test_sizes_are_those_of_the_file_and_its_network(folder: Path, tiny_set: ImageSet) -> None:
    metrics, _ = finished(folder, tiny_set)
    weights = load_file(folder / "weights.safetensors")
    parameters = [value for name, value in weights.items() if "running" not in name and "num_batches" not in name]
    assert metrics["size/mb"] == (folder / "model.onnx").stat().st_size / 1e6
    assert metrics["size/zipped_mb"] < metrics["size/mb"]
    assert metrics["size/parameters"] == sum(value.numel() for value in parameters)
    assert metrics["size/nonzero_parameters"] == sum(int((value != 0).sum()) for value in parameters)


def test_drop_and_agreement_are_against_what_dense_answered(folder: Path, other: Path, tiny_set: ImageSet) -> None:
    labels = tiny_set.labels_N[tiny_set.indices(VALIDATION)]
    answers = np.load(other / "validation_logits.npy").argmax(1)
    metrics, _ = finished(folder, tiny_set, dense=other, parent=folder)
    assert metrics["quality/agreement"] == pytest.approx(54 / 60)
    assert metrics["quality/agreement_parent"] == 1.0
    expected = (metrics["quality/top1"] - (answers == labels).mean()) * 100
    assert metrics["delta/top1"] == pytest.approx(expected)
    assert abs(expected) > 1


def test_card_says_what_a_server_must_know(folder: Path, tiny_set: ImageSet) -> None:
    metrics, _ = finished(folder, tiny_set)
    first = (folder / "card.json").read_bytes()
    card = json.loads(first)
    assert (card["name"], card["method"], card["precision"]) == ("child", "prune", "f32")
    assert (card["lineage"], card["labels"]) == (["dense", "child"], {"training": 110, "choosing": 60})
    assert (card["classes"], card["image_size"]) == (["disc", "stripes", "wedge"], 16)
    assert card["input"] | {"note": ""} == {"name": "pixels", "type": "uint8", "shape": ["N", 16, 16, 3], "note": ""}
    assert card["output"]["shape"] == ["N", 3]
    assert "16 x 16" in card["resize_policy"]
    assert card["metrics"] == metrics
    finished(folder, tiny_set)
    assert (folder / "card.json").read_bytes() == first


def test_without_validation_labels_there_is_agreement_alone(folder: Path, other: Path, tiny_set: ImageSet) -> None:
    hidden = np.where(tiny_set.split_N == VALIDATION, -1, tiny_set.labels_N)
    metrics, details = finished(folder, dataclasses.replace(tiny_set, labels_N=hidden), dense=other)
    assert set(metrics) == ALWAYS | {PARITY}
    assert metrics["quality/agreement"] == pytest.approx(54 / 60)
    assert (details.per_class, details.confusion, details.reliability) == ({}, [], [])
    assert details.labels.choosing == 0


def test_images_without_a_label_are_answered_but_not_scored(folder: Path, tiny_set: ImageSet) -> None:
    indices = tiny_set.indices(VALIDATION)
    labels = np.array(tiny_set.labels_N)
    labels[indices[:20]] = -1
    metrics, details = finished(folder, dataclasses.replace(tiny_set, labels_N=labels))
    logits = np.load(folder / "validation_logits.npy")
    assert logits.shape == (60, 3)
    assert metrics["quality/top1"] == (logits[20:].argmax(1) == labels[indices[20:]]).mean()
    assert details.labels.choosing == 40


def test_int8_file_has_no_network_to_be_compared_with(
    tiny_candidate: Callable[[str], Path], tiny_dense: Path, tiny_set: ImageSet, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_candidate("dense-int8"), tmp_path / "int8"))
    metrics, details = finished(folder, tiny_set, dense=tiny_dense)
    assert set(metrics) == ALWAYS | LABELLED
    assert (details.precision, metrics["compute/int8_share"]) == ("int8", 1.0)
    assert metrics["size/nonzero_parameters"] < metrics["size/parameters"]


def test_file_that_differs_from_its_network_is_refused(folder: Path, tiny_set: ImageSet) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["fc.bias"] += 0.5
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(ArtifactError, match=r"differs from the network by 0\.5 in its logits"):
        finished(folder, tiny_set)


@pytest.mark.parametrize("content", [None, b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_damaged_answers_of_dense_are_named(
    folder: Path, other: Path, tiny_set: ImageSet, content: bytes | None
) -> None:
    (other / "validation_logits.npy").unlink()
    if content is not None:
        (other / "validation_logits.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"other/validation_logits\.npy is missing or damaged"):
        finished(folder, tiny_set, dense=other)
