from __future__ import annotations

import collections
import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from winnow.compression import write_candidate
from winnow.compression.ladder_acceptance import ValidationHalf
from winnow.compression.method_inputs import MethodInputs, NetworkFolder
from winnow.compression.post_training_quantization import Recipe, quantize_statically, quantize_with_accuracy_control
from winnow.compression.quantize import calibration_images
from winnow.config import Quantize
from winnow.data.dataset import TEST, TRAIN, VALIDATION, ImageSet
from winnow.data.splits import selection_half
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_export import export_onnx, float_layers, inspect_onnx
from winnow.deploy.openvino_inference import openvino_core
from winnow.deploy.runtime_properties import NEEDED_AGREEMENT
from winnow.errors import ArtifactError
from winnow.evaluation.metrics import agreement
from winnow.models.backbones import Architecture, build_model
from winnow.records import sha256_of
from winnow.records.benchmark import BenchmarkCase
from winnow.records.method_results import QuantizeResult, RungConfirmation


def settings(**changes: Any) -> Quantize:
    return Quantize.model_validate({"from": "dense", "method": "quantize", "calibration_images": 24, **changes})


def validation_logits(folder: Path, images: ImageSet) -> np.ndarray:
    return predict_file(folder / "model.onnx", images.images_NHWC, images.indices(VALIDATION))


def load_graph(folder: Path) -> tuple[onnx.GraphProto, dict[str, np.ndarray]]:
    graph = onnx.load(folder / "model.onnx").graph
    return graph, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.mark.parametrize("name", ["dense-int8", "pruned-int8"])
def test_int8_agrees_with_its_parent(name: str, tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    child, parent = tiny_candidate(name), tiny_candidate(name.removesuffix("-int8"))
    assert agreement(validation_logits(child, tiny_set), validation_logits(parent, tiny_set)) >= 0.95
    contents, parent_contents = inspect_onnx(child / "model.onnx"), inspect_onnx(parent / "model.onnx")
    assert contents.macs == contents.int8_macs == parent_contents.macs
    assert parent_contents.int8_macs == 0
    assert (child / "model.onnx").stat().st_size < 0.3 * (parent / "model.onnx").stat().st_size
    assert not (child / "weights.safetensors").exists()


def test_weights_are_signed_per_channel_and_activations_after_relu_unsigned(
    tiny_candidate: Callable[[str], Path],
) -> None:
    graph, arrays = load_graph(tiny_candidate("dense-int8"))
    producers = {name: node for node in graph.node for name in node.output}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays]
    assert len(weights) == 10
    for node in weights:
        weight, scale, zero_point = (arrays[name] for name in node.input)
        assert (weight.dtype, scale.size) == (np.int8, weight.shape[0])
        assert not zero_point.any()
        assert np.abs(weight.astype(int)).max() <= 127
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    after_relu = [node for node in quantizers if producers[node.input[0]].op_type == "Relu"]
    assert len(after_relu) == 7
    assert {(arrays[node.input[2]].dtype, int(arrays[node.input[2]])) for node in after_relu} == {(np.dtype("u1"), 0)}
    assert {arrays[node.input[2]].dtype.itemsize for node in quantizers} == {1}


def test_weights_are_the_rounded_weights_of_the_parent(tiny_candidate: Callable[[str], Path], tiny_dense: Path) -> None:
    """The largest rounding error is half a step of the channel."""
    (graph, arrays), (_, parent_arrays) = load_graph(tiny_candidate("dense-int8")), load_graph(tiny_dense)
    dequantizers = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    head = next(node for node in dequantizers if arrays[node.input[0]].shape == (3, 192))
    weight, scale, _ = (arrays[name] for name in head.input)
    parent = next(array for array in parent_arrays.values() if array.shape == (3, 192))
    error = np.abs(weight * scale[:, None] - parent)
    assert (error <= 0.5 * scale[:, None] + 1e-7).all()


def test_both_runtimes_give_the_same_predictions(tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    folder, core = tiny_candidate("dense-int8"), openvino_core()
    pixels = np.ascontiguousarray(tiny_set.images_NHWC[tiny_set.indices(VALIDATION)])
    model = core.read_model(folder / "model.onnx")
    # As winnow/deploy/openvino_inference.py does: with a free batch OpenVINO 2026.4 computes int8 convolutions wrongly.
    model.reshape(list(pixels.shape))
    logits = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0]
    assert agreement(logits, validation_logits(folder, tiny_set)) >= NEEDED_AGREEMENT["int8"]
    np.testing.assert_allclose(logits, validation_logits(folder, tiny_set), atol=0.5)


@pytest.mark.thorough
def test_the_file_depends_on_training_images_only(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    images = tiny_inputs.images
    pixels = np.array(images.images_NHWC)
    pixels[np.isin(images.split_N, [VALIDATION, TEST])] = 255
    other_splits_changed = dataclasses.replace(images, images_NHWC=pixels, labels_N=np.full_like(images.labels_N, 2))
    pixels = np.array(images.images_NHWC)
    pixels[images.split_N == TRAIN] = 255 - pixels[images.split_N == TRAIN]
    training_changed = dataclasses.replace(images, images_NHWC=pixels)
    results = []
    for index, images_variant in enumerate((images, images, other_splits_changed, training_changed)):
        folder = tmp_path / str(index)
        folder.mkdir()
        inputs = dataclasses.replace(
            tiny_inputs, images=images_variant, labels_N=images_variant.labels_N, budget=images_variant.indices(TEST)
        )
        assert write_candidate(settings(), inputs, folder) == QuantizeResult(calibration_images=24)
        results.append(sha256_of(folder / "model.onnx"))
    assert results[0] == results[1] == results[2] != results[3]


def test_calibration_takes_training_images_by_seed(tiny_inputs: MethodInputs) -> None:
    images = tiny_inputs.images
    training = {image.tobytes() for image in images.images_NHWC[images.indices(TRAIN)]}
    other_splits = {image.tobytes() for image in images.images_NHWC[images.split_N != TRAIN]}
    calibration_sets = [calibration_images(settings(seed=seed), tiny_inputs) for seed in (0, 0, 1)]
    first_set = {image.tobytes() for image in calibration_sets[0]}
    assert len(first_set) == len(first_set & training) == 24
    assert len(first_set & other_splits) == 0
    np.testing.assert_array_equal(calibration_sets[0], calibration_sets[1])
    assert (calibration_sets[0] != calibration_sets[2]).any()
    largest = calibration_images(settings(calibration_images=5000), tiny_inputs)
    assert len(largest) == 120


def test_symmetric_preset_has_zero_in_the_middle(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    write_candidate(settings(preset="performance"), tiny_inputs, tmp_path)
    graph, arrays = load_graph(tmp_path)
    zeros = {int(arrays[node.input[2]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {0}


def test_dynamic_is_smaller_and_quantizes_at_run_time(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    files_before = sorted(path.name for path in tiny_inputs.parent.folder.iterdir())
    details = write_candidate(settings(scheme="dynamic"), tiny_inputs, tmp_path)
    assert details == QuantizeResult(calibration_images=0)
    operators = collections.Counter(node.op_type for node in load_graph(tmp_path)[0].node)
    assert (operators["ConvInteger"], operators["MatMulInteger"], operators["Conv"]) == (9, 1, 0)
    assert operators["DynamicQuantizeLinear"] > 0
    parent = tiny_inputs.parent.folder / "model.onnx"
    assert (tmp_path / "model.onnx").stat().st_size < 0.3 * parent.stat().st_size
    contents = inspect_onnx(tmp_path / "model.onnx")
    assert contents.macs == contents.int8_macs == inspect_onnx(parent).macs
    assert (
        agreement(
            validation_logits(tmp_path, tiny_inputs.images),
            validation_logits(tiny_inputs.parent.folder, tiny_inputs.images),
        )
        >= 0.95
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.json", "model.onnx"]
    assert sorted(path.name for path in tiny_inputs.parent.folder.iterdir()) == files_before
    digest = sha256_of(tmp_path / "model.onnx")
    write_candidate(settings(scheme="dynamic"), tiny_inputs, tmp_path)
    assert sha256_of(tmp_path / "model.onnx") == digest


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_damaged_parent_is_named(tiny_inputs: MethodInputs, tmp_path: Path, scheme: str) -> None:
    parent = Path(shutil.copytree(tiny_inputs.parent.folder, tmp_path / "parent"))
    (parent / "model.onnx").write_bytes(b"no ONNX file at all")
    with pytest.raises(ArtifactError, match=r"parent/model\.onnx cannot be read as an ONNX file"):
        write_candidate(
            settings(scheme=scheme), dataclasses.replace(tiny_inputs, parent=NetworkFolder(parent)), tmp_path
        )
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("changes", [{"scheme": "int4"}, {"calibration_images": 0}, {"preset": "fast"}])
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)


RECOVERY = {"epochs": 1, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.01}}


@pytest.mark.thorough
def test_a_ladder_stops_at_the_first_rung_within_the_limit(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(scheme="ladder", max_drop_points=50.0), tiny_inputs, tmp_path)
    assert [row.rung for row in details.rungs] == ["static"]
    assert details.chosen == "static"
    static = tmp_path / "plain"
    static.mkdir()
    write_candidate(settings(), tiny_inputs, static)
    assert sha256_of(static / "model.onnx") == sha256_of(tmp_path / "model.onnx")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("confirming_points", "confirmed"), [((4.0, 5.0), True), ((5.0, 5.0), False), ((6.0, 5.0), False)]
)
def test_a_ladder_keeps_its_best_rung_if_the_other_half_confirms(
    tiny_inputs: MethodInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    confirming_points: tuple[float, float],
    confirmed: bool,
) -> None:
    choosing_losses = iter([3.0, 2.0, 4.0, 1.0, 5.0, 6.0])
    choosing_count = int(selection_half(tiny_inputs.images).sum())
    confirming_losses = iter(confirming_points)

    def points_lost(half: ValidationHalf, _file: Path) -> float:
        if len(half.indices_V) == choosing_count:
            return next(choosing_losses)
        return next(confirming_losses)

    monkeypatch.setattr(ValidationHalf, "points_lost", points_lost)
    out = tmp_path / "out"
    out.mkdir()
    details = write_candidate(settings(scheme="ladder", recovery=RECOVERY), tiny_inputs, out)
    names = ["static", "min-max", "histogram", "percentile", "full bias correction", "worst layers in float", "trained"]
    assert [row.rung for row in details.rungs] == names
    # Full bias correction is not possible for some networks.
    points_by_rung = {row.rung: row.points_lost for row in details.rungs if row.points_lost is not None}
    best = min(points_by_rung, key=lambda rung: points_by_rung[rung])
    assert len(points_by_rung) >= 5
    assert details.chosen == (best if confirmed else "static")
    best_points, static_points = confirming_points
    assert details.confirmation == RungConfirmation(
        rung=best, points_lost=best_points, static_points_lost=static_points, confirmed=confirmed
    )
    assert details.curves == []  # the trained network is not the chosen one
    assert sorted(path.name for path in out.iterdir()) == ["architecture.json", "model.onnx"]
    static_folder = tmp_path / "plain"
    static_folder.mkdir()
    write_candidate(settings(), tiny_inputs, static_folder)
    assert (sha256_of(static_folder / "model.onnx") == sha256_of(out / "model.onnx")) is not confirmed


def test_one_half_chooses_and_the_other_confirms(tiny_inputs: MethodInputs) -> None:
    choosing, confirming = ValidationHalf.halves(tiny_inputs)
    indices = [*choosing.indices_V.tolist(), *confirming.indices_V.tolist()]
    assert sorted(indices) == tiny_inputs.images.indices(VALIDATION).tolist()
    assert min(len(choosing.indices_V), len(confirming.indices_V)) > 10


@pytest.mark.thorough
def test_no_rung_is_tried_twice(tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValidationHalf, "points_lost", lambda _half, _file: 9.0)
    details = write_candidate(settings(scheme="ladder", ranges="histogram"), tiny_inputs, tmp_path)
    names = ["static", "min-max", "percentile", "full bias correction", "worst layers in float"]
    assert [row.rung for row in details.rungs] == names


def test_points_lost_are_relative_to_labels_and_predictions_of_the_parent(tiny_inputs: MethodInputs) -> None:
    for half in ValidationHalf.halves(tiny_inputs):
        assert half.points_lost(tiny_inputs.parent.folder / "model.onnx") == 0
        labels = tiny_inputs.images.labels_N[half.indices_V]
        images = tiny_inputs.images.images_NHWC
        predictions = predict_file(tiny_inputs.parent.folder / "model.onnx", images, half.indices_V).argmax(1)
        assert half.targets_V.tolist() == np.where(labels >= 0, labels, predictions).tolist()
        assert half.right == (predictions == half.targets_V).mean()


@pytest.mark.thorough
def test_quantization_aware_training(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(scheme="qat", recovery=RECOVERY), tiny_inputs, tmp_path)
    assert len(details.curves) == 1
    contents = inspect_onnx(tmp_path / "model.onnx")
    assert contents.int8_macs == contents.macs
    assert not (tmp_path / "weights.safetensors").exists()  # it would be the float network's


@pytest.mark.thorough
def test_the_worst_layers_are_kept_in_float(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    """One enormous weight makes all others of its channel round to zero."""
    outlier_folder = tmp_path / "spoilt"
    outlier_folder.mkdir()
    proto = onnx.load(tiny_inputs.parent.folder / "model.onnx")
    kernel = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] > 3)
    weight = numpy_helper.to_array(kernel).copy()
    weight[:, 0, 0, 0] = 20 * np.abs(weight).max()
    kernel.CopyFrom(numpy_helper.from_array(weight, kernel.name))
    onnx.save(proto, outlier_folder / "model.onnx")
    images, indices = tiny_inputs.images, tiny_inputs.images.indices(VALIDATION)
    expected = predict_file(outlier_folder / "model.onnx", images.images_NHWC, indices).argmax(1)
    pairs = [
        (images.images_NHWC[index : index + 1], int(label)) for index, label in zip(indices, expected, strict=True)
    ]
    pixels = np.ascontiguousarray(images.images_NHWC[indices[:16]])
    source, static, controlled = outlier_folder / "model.onnx", tmp_path / "plain.onnx", tmp_path / "controlled.onnx"
    quantize_statically(source, static, pixels)
    quantize_with_accuracy_control(source, controlled, pixels, Recipe(), pairs, max_drop=1e-9)
    accuracies = [
        (predict_file(file, images.images_NHWC, indices).argmax(1) == expected).mean() for file in (static, controlled)
    ]
    assert accuracies[0] < accuracies[1]
    assert float_layers(static) == []
    assert float_layers(controlled)


@pytest.mark.thorough
@pytest.mark.parametrize("confirmed", [True, False])
def test_controlled_keeps_layers_in_float_if_the_other_half_confirms(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confirmed: bool
) -> None:
    max_drops: list[float] = []
    module = sys.modules["winnow.compression.quantize"]

    def fake_quantize(
        source: Path, target: Path, pixels: np.ndarray, recipe: Recipe, pairs: Any, max_drop: float
    ) -> None:
        max_drops.append(max_drop)
        assert len(pairs) == selection_half(tiny_inputs.images).sum()
        shutil.copyfile(source, target)  # every layer is float again

    losses = iter([1.0, 2.0] if confirmed else [2.0, 2.0])
    monkeypatch.setattr(ValidationHalf, "points_lost", lambda _half, _file: next(losses))
    monkeypatch.setattr(module, "quantize_with_accuracy_control", fake_quantize)
    details = write_candidate(settings(scheme="controlled", max_drop_points=2.0), tiny_inputs, tmp_path)
    assert max_drops == [0.02]
    assert details.confirmation is not None
    assert details.confirmation.confirmed is confirmed
    assert details.float_layers == float_layers(tmp_path / "model.onnx")
    assert bool(details.float_layers) is confirmed


def test_controlled_that_keeps_nothing_in_float_is_static(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(scheme="controlled", max_drop_points=50.0), tiny_inputs, tmp_path)
    assert details.float_layers == []
    assert details.confirmation is None


@pytest.mark.thorough
@pytest.mark.parametrize("ranges", ["minmax", "histogram", "percentile"])
def test_range_estimators_differ_and_all_agree(tiny_inputs: MethodInputs, tmp_path: Path, ranges: str) -> None:
    files = []
    for name, config in (("plain", settings()), (ranges, settings(ranges=ranges))):
        (tmp_path / name).mkdir()
        write_candidate(config, tiny_inputs, tmp_path / name)
        files.append(tmp_path / name / "model.onnx")
    assert sha256_of(files[0]) != sha256_of(files[1])
    indices = tiny_inputs.images.indices(VALIDATION)
    logits = [predict_file(file, tiny_inputs.images.images_NHWC, indices) for file in files]
    assert agreement(*logits) > 0.8


def test_overflow_safe_weights_take_seven_bits(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    write_candidate(settings(overflow_safe=True), tiny_inputs, tmp_path)
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if len(tensor.dims) in (2, 4) and numpy_helper.to_array(tensor).dtype == np.int8
    ]
    assert weights
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) <= 64


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "efficientnet_b0"])
def test_depthwise_networks_run_in_both_runtimes(backbone: str, tmp_path: Path) -> None:
    """ONNX Runtime refuses per-channel activation ranges, which NNCF gives depthwise convolutions."""
    architecture = Architecture(backbone=backbone, num_classes=4, image_size=32)
    export_onnx(build_model(architecture), architecture, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    float_logits = open_case(tmp_path, BenchmarkCase("x", "ort", "f32", "file", 8, 1))(pixels)
    quantize_statically(tmp_path / "model.onnx", tmp_path / "model.onnx", pixels)
    for runtime in ("ort", "openvino"):
        int8_logits = open_case(tmp_path, BenchmarkCase("x", runtime, "int8", "file", 8, 1))(pixels)
        assert np.corrcoef(int8_logits.ravel(), float_logits.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "qat"}, "scheme: qat needs a recovery"),
        ({"recovery": RECOVERY}, "static does not train"),
        ({"scheme": "controlled", "recovery": RECOVERY}, "controlled does not train"),
        ({"ranges": "entropy"}, "'mean', 'minmax', 'histogram' or 'percentile'"),
    ],
)
def test_invalid_schemes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
