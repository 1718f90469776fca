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
from winnow.deploy.inference_runtimes import NEEDED_AGREEMENT, open_case, openvino_core
from winnow.deploy.onnx_export import export_onnx, float_layers, inspect_onnx
from winnow.errors import ArtifactError
from winnow.evaluation.metrics import agreement
from winnow.models.backbones import Architecture, build_model
from winnow.records import sha256_of
from winnow.records.benchmark import BenchmarkCase
from winnow.records.candidate import QuantizeResult, RungConfirmation


def settings(**changes: Any) -> Quantize:
    return Quantize.model_validate({"from": "dense", "method": "quantize", "calibration_images": 24, **changes})


def answers(folder: Path, images: ImageSet) -> np.ndarray:
    return predict_file(folder / "model.onnx", images.images_NHWC, images.indices(VALIDATION))


def graph_of(folder: Path) -> tuple[onnx.GraphProto, dict[str, np.ndarray]]:
    graph = onnx.load(folder / "model.onnx").graph
    return graph, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.mark.parametrize("name", ["dense-int8", "pruned-int8"])
def test_int8_agrees_with_its_parent(name: str, tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    child, parent = tiny_candidate(name), tiny_candidate(name.removesuffix("-int8"))
    assert agreement(answers(child, tiny_set), answers(parent, tiny_set)) >= 0.95
    contents, before = inspect_onnx(child / "model.onnx"), inspect_onnx(parent / "model.onnx")
    assert contents.macs == contents.int8_macs == before.macs
    assert before.int8_macs == 0
    assert (child / "model.onnx").stat().st_size < 0.3 * (parent / "model.onnx").stat().st_size
    assert not (child / "weights.safetensors").exists()


def test_weights_are_signed_per_channel_and_activations_after_relu_unsigned(
    tiny_candidate: Callable[[str], Path],
) -> None:
    graph, arrays = graph_of(tiny_candidate("dense-int8"))
    made_by = {name: node for node in graph.node for name in node.output}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in arrays]
    assert len(weights) == 10
    for node in weights:
        weight, scale, zero = (arrays[name] for name in node.input)
        assert (weight.dtype, scale.size) == (np.int8, weight.shape[0])
        assert not zero.any()
        assert np.abs(weight.astype(int)).max() <= 127
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    after_relu = [node for node in quantizers if made_by[node.input[0]].op_type == "Relu"]
    assert len(after_relu) == 7
    assert {(arrays[node.input[2]].dtype, int(arrays[node.input[2]])) for node in after_relu} == {(np.dtype("u1"), 0)}
    assert {arrays[node.input[2]].dtype.itemsize for node in quantizers} == {1}


def test_weights_are_the_parents_rounded(tiny_candidate: Callable[[str], Path], tiny_dense: Path) -> None:
    """The largest error of a rounded number is half a step of its channel."""
    (graph, arrays), (_, before) = graph_of(tiny_candidate("dense-int8")), graph_of(tiny_dense)
    stored = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    head = next(node for node in stored if arrays[node.input[0]].shape == (3, 192))
    weight, scale, _ = (arrays[name] for name in head.input)
    parent = next(array for array in before.values() if array.shape == (3, 192))
    error = np.abs(weight * scale[:, None] - parent)
    assert (error <= 0.5 * scale[:, None] + 1e-7).all()


def test_both_runtimes_give_the_same_answers(tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    folder, core = tiny_candidate("dense-int8"), openvino_core()
    pixels = np.ascontiguousarray(tiny_set.images_NHWC[tiny_set.indices(VALIDATION)])
    model = core.read_model(folder / "model.onnx")
    # As winnow/deploy/inference_runtimes.py does: with a free batch OpenVINO 2026.4 computes int8 convolutions wrongly.
    model.reshape(list(pixels.shape))
    logits = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0]
    assert agreement(logits, answers(folder, tiny_set)) >= NEEDED_AGREEMENT["int8"]
    np.testing.assert_allclose(logits, answers(folder, tiny_set), atol=0.5)


@pytest.mark.thorough
def test_same_images_same_bytes_whatever_the_labels_and_other_splits(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    images = tiny_inputs.images
    pixels = np.array(images.images_NHWC)
    pixels[np.isin(images.split_N, [VALIDATION, TEST])] = 255
    hidden = dataclasses.replace(images, images_NHWC=pixels, labels_N=np.full_like(images.labels_N, 2))
    pixels = np.array(images.images_NHWC)
    pixels[images.split_N == TRAIN] = 255 - pixels[images.split_N == TRAIN]
    others = dataclasses.replace(images, images_NHWC=pixels)
    results = []
    for index, given in enumerate((images, images, hidden, others)):
        folder = tmp_path / str(index)
        folder.mkdir()
        inputs = dataclasses.replace(tiny_inputs, images=given, labels_N=given.labels_N, budget=given.indices(TEST))
        assert write_candidate(settings(), inputs, folder) == QuantizeResult(calibration_images=24)
        results.append(sha256_of(folder / "model.onnx"))
    assert results[0] == results[1] == results[2] != results[3]


def test_calibration_takes_training_images_by_seed(tiny_inputs: MethodInputs) -> None:
    images = tiny_inputs.images
    training = {image.tobytes() for image in images.images_NHWC[images.indices(TRAIN)]}
    foreign = {image.tobytes() for image in images.images_NHWC[images.split_N != TRAIN]}
    drawn = [calibration_images(settings(seed=seed), tiny_inputs) for seed in (0, 0, 1)]
    taken = {image.tobytes() for image in drawn[0]}
    assert len(taken) == len(taken & training) == 24
    assert len(taken & foreign) == 0
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    everything = calibration_images(settings(calibration_images=5000), tiny_inputs)
    assert len(everything) == 120


def test_symmetric_preset_has_zero_in_the_middle(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    write_candidate(settings(preset="performance"), tiny_inputs, tmp_path)
    graph, arrays = graph_of(tmp_path)
    zeros = {int(arrays[node.input[2]]) for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {0}


def test_dynamic_is_smaller_and_measures_at_run_time(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    before = sorted(path.name for path in tiny_inputs.parent.folder.iterdir())
    details = write_candidate(settings(scheme="dynamic"), tiny_inputs, tmp_path)
    assert details == QuantizeResult(calibration_images=0)
    operators = collections.Counter(node.op_type for node in graph_of(tmp_path)[0].node)
    assert (operators["ConvInteger"], operators["MatMulInteger"], operators["Conv"]) == (9, 1, 0)
    assert operators["DynamicQuantizeLinear"] > 0
    parent = tiny_inputs.parent.folder / "model.onnx"
    assert (tmp_path / "model.onnx").stat().st_size < 0.3 * parent.stat().st_size
    contents = inspect_onnx(tmp_path / "model.onnx")
    assert contents.macs == contents.int8_macs == inspect_onnx(parent).macs
    assert (
        agreement(answers(tmp_path, tiny_inputs.images), answers(tiny_inputs.parent.folder, tiny_inputs.images)) >= 0.95
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.json", "model.onnx"]
    assert sorted(path.name for path in tiny_inputs.parent.folder.iterdir()) == before
    first = sha256_of(tmp_path / "model.onnx")
    write_candidate(settings(scheme="dynamic"), tiny_inputs, tmp_path)
    assert sha256_of(tmp_path / "model.onnx") == first


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_damaged_parent_is_named(tiny_inputs: MethodInputs, tmp_path: Path, scheme: str) -> None:
    parent = Path(shutil.copytree(tiny_inputs.parent.folder, tmp_path / "parent"))
    (parent / "model.onnx").write_bytes(b"no ONNX file at all")
    with pytest.raises(ArtifactError, match=r"parent/model\.onnx cannot be read as an ONNX file"):
        write_candidate(
            settings(scheme=scheme), dataclasses.replace(tiny_inputs, parent=NetworkFolder(parent)), tmp_path
        )
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("wrong", [{"scheme": "int4"}, {"calibration_images": 0}, {"preset": "fast"}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


RECOVERY = {"epochs": 1, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.01}}


@pytest.mark.thorough
def test_a_ladder_stops_at_the_first_rung_that_is_good_enough(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(scheme="ladder", max_drop_points=50.0), tiny_inputs, tmp_path)
    assert [row.rung for row in details.rungs] == ["static"]
    assert details.chosen == "static"
    plain = tmp_path / "plain"
    plain.mkdir()
    write_candidate(settings(), tiny_inputs, plain)
    assert sha256_of(plain / "model.onnx") == sha256_of(tmp_path / "model.onnx")


@pytest.mark.thorough
@pytest.mark.parametrize(("on_the_other_half", "stays"), [((4.0, 5.0), True), ((5.0, 5.0), False), ((6.0, 5.0), False)])
def test_a_ladder_is_climbed_to_its_end_and_the_best_rung_stays_if_other_images_agree(
    tiny_inputs: MethodInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_the_other_half: tuple[float, float],
    stays: bool,
) -> None:
    lost = iter([3.0, 2.0, 4.0, 1.0, 5.0, 6.0])
    chooses = int(selection_half(tiny_inputs.images).sum())
    other = iter(on_the_other_half)

    def points_lost(judge: ValidationHalf, _file: Path) -> float:
        if len(judge.indices_V) == chooses:
            return next(lost)
        return next(other)

    monkeypatch.setattr(ValidationHalf, "points_lost", points_lost)
    out = tmp_path / "out"
    out.mkdir()
    details = write_candidate(settings(scheme="ladder", recovery=RECOVERY), tiny_inputs, out)
    names = ["static", "min-max", "histogram", "percentile", "full bias correction", "worst layers in float", "trained"]
    assert [row.rung for row in details.rungs] == names
    # Full bias correction is not possible for some networks.
    possible = {row.rung: row.points_lost for row in details.rungs if row.points_lost is not None}
    best = min(possible, key=lambda rung: possible[rung])
    assert len(possible) >= 5
    assert details.chosen == (best if stays else "static")
    own, static = on_the_other_half
    assert details.confirmation == RungConfirmation(
        rung=best, points_lost=own, static_points_lost=static, confirmed=stays
    )
    assert details.curves == []  # the network that was trained is not the one that stays
    assert sorted(path.name for path in out.iterdir()) == ["architecture.json", "model.onnx"]
    plain = tmp_path / "plain"
    plain.mkdir()
    write_candidate(settings(), tiny_inputs, plain)
    assert (sha256_of(plain / "model.onnx") == sha256_of(out / "model.onnx")) is not stays


def test_one_half_chooses_and_the_other_confirms(tiny_inputs: MethodInputs) -> None:
    choosing, confirming = ValidationHalf.halves(tiny_inputs)
    every = [*choosing.indices_V.tolist(), *confirming.indices_V.tolist()]
    assert sorted(every) == tiny_inputs.images.indices(VALIDATION).tolist()
    assert min(len(choosing.indices_V), len(confirming.indices_V)) > 10


@pytest.mark.thorough
def test_no_rung_is_climbed_twice(tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValidationHalf, "points_lost", lambda _judge, _file: 9.0)
    details = write_candidate(settings(scheme="ladder", ranges="histogram"), tiny_inputs, tmp_path)
    names = ["static", "min-max", "percentile", "full bias correction", "worst layers in float"]
    assert [row.rung for row in details.rungs] == names


def test_what_a_file_loses_is_counted_against_labels_and_the_parents_answers(tiny_inputs: MethodInputs) -> None:
    for judge in ValidationHalf.halves(tiny_inputs):
        assert judge.points_lost(tiny_inputs.parent.folder / "model.onnx") == 0
        labels = tiny_inputs.images.labels_N[judge.indices_V]
        images = tiny_inputs.images.images_NHWC
        answers = predict_file(tiny_inputs.parent.folder / "model.onnx", images, judge.indices_V).argmax(1)
        assert judge.targets_V.tolist() == np.where(labels >= 0, labels, answers).tolist()
        assert judge.right == (answers == judge.targets_V).mean()


@pytest.mark.thorough
def test_trained_under_rounding(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(scheme="qat", recovery=RECOVERY), tiny_inputs, tmp_path)
    assert len(details.curves) == 1
    contents = inspect_onnx(tmp_path / "model.onnx")
    assert contents.int8_macs == contents.macs
    assert not (tmp_path / "weights.safetensors").exists()  # it would be the float network's


@pytest.mark.thorough
def test_worst_layers_go_back_to_float(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    """Beside one enormous weight all others of a channel round to nothing: that layer goes back."""
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    proto = onnx.load(tiny_inputs.parent.folder / "model.onnx")
    wide = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] > 3)
    weight = numpy_helper.to_array(wide).copy()
    weight[:, 0, 0, 0] = 20 * np.abs(weight).max()
    wide.CopyFrom(numpy_helper.from_array(weight, wide.name))
    onnx.save(proto, spoilt / "model.onnx")
    images, indices = tiny_inputs.images, tiny_inputs.images.indices(VALIDATION)
    expected = predict_file(spoilt / "model.onnx", images.images_NHWC, indices).argmax(1)
    pairs = [
        (images.images_NHWC[index : index + 1], int(answer)) for index, answer in zip(indices, expected, strict=True)
    ]
    pixels = np.ascontiguousarray(images.images_NHWC[indices[:16]])
    source, plain, controlled = spoilt / "model.onnx", tmp_path / "plain.onnx", tmp_path / "controlled.onnx"
    quantize_statically(source, plain, pixels)
    quantize_with_accuracy_control(source, controlled, pixels, Recipe(), pairs, max_drop=1e-9)
    right = [
        (predict_file(file, images.images_NHWC, indices).argmax(1) == expected).mean() for file in (plain, controlled)
    ]
    assert right[0] < right[1]
    assert float_layers(plain) == []
    assert float_layers(controlled)


@pytest.mark.thorough
@pytest.mark.parametrize("confirmed", [True, False])
def test_controlled_keeps_layers_in_float_where_images_that_did_not_choose_them_agree(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confirmed: bool
) -> None:
    asked: list[float] = []
    module = sys.modules["winnow.compression.quantize"]

    def watched(source: Path, target: Path, pixels: np.ndarray, recipe: Recipe, pairs: Any, allowed: float) -> None:
        asked.append(allowed)
        assert len(pairs) == selection_half(tiny_inputs.images).sum()
        shutil.copyfile(source, target)  # every layer went back

    lost = iter([1.0, 2.0] if confirmed else [2.0, 2.0])
    monkeypatch.setattr(ValidationHalf, "points_lost", lambda _judge, _file: next(lost))
    monkeypatch.setattr(module, "quantize_with_accuracy_control", watched)
    details = write_candidate(settings(scheme="controlled", max_drop_points=2.0), tiny_inputs, tmp_path)
    assert asked == [0.02]
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
def test_ranges_differ_and_all_answer(tiny_inputs: MethodInputs, tmp_path: Path, ranges: str) -> None:
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
    stored = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if len(tensor.dims) in (2, 4) and numpy_helper.to_array(tensor).dtype == np.int8
    ]
    assert stored
    assert max(int(np.abs(weight.astype(int)).max()) for weight in stored) <= 64


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "efficientnet_b0"])
def test_depthwise_networks_run_in_both_runtimes(backbone: str, tmp_path: Path) -> None:
    """ONNX Runtime refuses one range a channel of the activations, which NNCF gives depthwise convolutions."""
    architecture = Architecture(backbone=backbone, num_classes=4, image_size=32)
    export_onnx(build_model(architecture), architecture, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    whole = open_case(tmp_path, BenchmarkCase("x", "ort", "f32", "file", 8, 1))(pixels)
    quantize_statically(tmp_path / "model.onnx", tmp_path / "model.onnx", pixels)
    for runtime in ("ort", "openvino"):
        answers = open_case(tmp_path, BenchmarkCase("x", runtime, "int8", "file", 8, 1))(pixels)
        assert np.corrcoef(answers.ravel(), whole.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "qat"}, "scheme: qat needs a recovery"),
        ({"recovery": RECOVERY}, "static does not train"),
        ({"scheme": "controlled", "recovery": RECOVERY}, "controlled does not train"),
        ({"ranges": "entropy"}, "'mean', 'minmax', 'histogram' or 'percentile'"),
    ],
)
def test_schemes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
