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
from winnow.records.candidate_file import CandidateFile, LabelCounts

UNLABELLED_METRICS = {
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
LABELLED_METRICS = {
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


def finish(
    child_folder: Path, images: ImageSet, dense: Path | None = None, parent: Path | None = None
) -> tuple[dict[str, float], CandidateFile]:
    return finish_candidate(
        child_folder,
        name="child",
        method="prune",
        lineage=["dense", "child"],
        images=images,
        budget=images.indices(TRAIN, labelled=True),
        dense=dense,
        parent=parent,
    )


@pytest.fixture
def child_folder(tiny_dense: Path, tmp_path: Path) -> Path:
    """Return a copy of dense that a test may change."""
    return Path(shutil.copytree(tiny_dense, tmp_path / "child"))


@pytest.fixture
def changed_dense(tiny_dense: Path, tmp_path: Path) -> Path:
    """Return a copy of dense with other predictions for 6 of 60 images."""
    path = Path(shutil.copytree(tiny_dense, tmp_path / "other"))
    logits = np.load(path / "validation_logits.npy")
    logits[:6] = np.roll(logits[:6], 1, axis=1)
    np.save(path / "validation_logits.npy", logits)
    return path


def test_metrics_are_those_of_the_file(child_folder: Path, tiny_set: ImageSet) -> None:
    (child_folder / "validation_logits.npy").unlink()
    metrics, details = finish(child_folder, tiny_set)
    indices = tiny_set.indices(VALIDATION)
    logits = np.load(child_folder / "validation_logits.npy", allow_pickle=False)
    np.testing.assert_array_equal(logits, predict_file(child_folder / "model.onnx", tiny_set.images_NHWC, indices))
    correct = int((logits.argmax(1) == tiny_set.labels_N[indices]).sum())
    assert set(metrics) == UNLABELLED_METRICS | LABELLED_METRICS | {PARITY}
    assert metrics["quality/top1"] == correct / 60
    assert (metrics["quality/top1_low"], metrics["quality/top1_high"]) == wilson_interval(correct, 60)
    assert (metrics["quality/agreement"], metrics["delta/top1"]) == (1.0, 0.0)
    assert 0 < metrics[PARITY] < 1e-3
    assert (details.precision, details.lineage) == ("f32", ["dense", "child"])
    assert details.labels == LabelCounts(training=110, choosing=60)


def test_sizes_of_the_file_and_its_network(child_folder: Path, tiny_set: ImageSet) -> None:
    metrics, _ = finish(child_folder, tiny_set)
    weights = load_file(child_folder / "weights.safetensors")
    parameters = [value for name, value in weights.items() if "running" not in name and "num_batches" not in name]
    assert metrics["size/mb"] == (child_folder / "model.onnx").stat().st_size / 1e6
    assert metrics["size/zipped_mb"] < metrics["size/mb"]
    assert metrics["size/parameters"] == sum(value.numel() for value in parameters)
    assert metrics["size/nonzero_parameters"] == sum(int((value != 0).sum()) for value in parameters)


def test_drop_and_agreement_are_relative_to_dense(child_folder: Path, changed_dense: Path, tiny_set: ImageSet) -> None:
    labels = tiny_set.labels_N[tiny_set.indices(VALIDATION)]
    predictions = np.load(changed_dense / "validation_logits.npy").argmax(1)
    metrics, _ = finish(child_folder, tiny_set, dense=changed_dense, parent=child_folder)
    assert metrics["quality/agreement"] == pytest.approx(54 / 60)
    assert metrics["quality/agreement_parent"] == 1.0
    expected = (metrics["quality/top1"] - (predictions == labels).mean()) * 100
    assert metrics["delta/top1"] == pytest.approx(expected)
    assert abs(expected) > 1


def test_the_card_describes_input_output_and_labels(child_folder: Path, tiny_set: ImageSet) -> None:
    metrics, _ = finish(child_folder, tiny_set)
    content = (child_folder / "card.json").read_bytes()
    card = json.loads(content)
    assert (card["name"], card["method"], card["precision"]) == ("child", "prune", "f32")
    assert (card["lineage"], card["labels"]) == (["dense", "child"], {"training": 110, "choosing": 60})
    assert (card["classes"], card["image_size"]) == (["disc", "stripes", "wedge"], 16)
    assert card["input"] | {"note": ""} == {"name": "pixels", "type": "uint8", "shape": ["N", 16, 16, 3], "note": ""}
    assert card["output"]["shape"] == ["N", 3]
    assert "16 x 16" in card["resize_policy"]
    assert card["metrics"] == metrics
    finish(child_folder, tiny_set)
    assert (child_folder / "card.json").read_bytes() == content


def test_without_validation_labels_only_agreement_is_measured(
    child_folder: Path, changed_dense: Path, tiny_set: ImageSet
) -> None:
    labels = np.where(tiny_set.split_N == VALIDATION, -1, tiny_set.labels_N)
    metrics, details = finish(child_folder, dataclasses.replace(tiny_set, labels_N=labels), dense=changed_dense)
    assert set(metrics) == UNLABELLED_METRICS | {PARITY}
    assert metrics["quality/agreement"] == pytest.approx(54 / 60)
    assert (details.per_class, details.confusion, details.reliability) == ({}, [], [])
    assert details.labels.choosing == 0


def test_unlabelled_images_have_logits_but_no_score(child_folder: Path, tiny_set: ImageSet) -> None:
    indices = tiny_set.indices(VALIDATION)
    labels = np.array(tiny_set.labels_N)
    labels[indices[:20]] = -1
    metrics, details = finish(child_folder, dataclasses.replace(tiny_set, labels_N=labels))
    logits = np.load(child_folder / "validation_logits.npy")
    assert logits.shape == (60, 3)
    assert metrics["quality/top1"] == (logits[20:].argmax(1) == labels[indices[20:]]).mean()
    assert details.labels.choosing == 40


def test_an_int8_file_has_no_parity_metric(
    tiny_candidate: Callable[[str], Path], tiny_dense: Path, tiny_set: ImageSet, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_candidate("dense-int8"), tmp_path / "int8"))
    metrics, details = finish(folder, tiny_set, dense=tiny_dense)
    assert set(metrics) == UNLABELLED_METRICS | LABELLED_METRICS
    assert (details.precision, metrics["compute/int8_share"]) == ("int8", 1.0)
    assert metrics["size/nonzero_parameters"] < metrics["size/parameters"]


def test_file_that_differs_from_its_network_is_refused(child_folder: Path, tiny_set: ImageSet) -> None:
    weights = load_file(child_folder / "weights.safetensors")
    weights["fc.bias"] += 0.5
    save_file(weights, child_folder / "weights.safetensors")
    with pytest.raises(ArtifactError, match=r"differs from the network by 0\.5 in its logits"):
        finish(child_folder, tiny_set)


@pytest.mark.parametrize("content", [None, b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_damaged_logits_of_dense_are_named(
    child_folder: Path, changed_dense: Path, tiny_set: ImageSet, content: bytes | None
) -> None:
    (changed_dense / "validation_logits.npy").unlink()
    if content is not None:
        (changed_dense / "validation_logits.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"other/validation_logits\.npy is missing or damaged"):
        finish(child_folder, tiny_set, dense=changed_dense)
