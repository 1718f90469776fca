from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from tests.records import known_weights_details
from winnow.compression.channel_importance import Criterion
from winnow.compression.channel_pruning import PruningStep, min_channels_by_layer, remove_channels
from winnow.compression.sparsify import apply_masks, magnitude_masks
from winnow.deploy.batch_inference import predict_file, predict_torch
from winnow.deploy.onnx_export import (
    Deployable,
    OnnxContents,
    export_onnx,
    inspect_onnx,
    load_onnx,
    save_onnx,
    write_onnx,
    zipped_bytes,
)
from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model
from winnow.records import KnownWeightsDetails, sha256_of

ROOT = Path(__file__).resolve().parents[3]
TINY = Architecture(backbone="resnet8", num_classes=3, image_size=16, width=0.2)


def random_network(architecture: Architecture = TINY, seed: int = 3) -> torch.nn.Module:
    """Return a network with random weights and, as if trained, random statistics."""
    model = build_model(architecture, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(random_network(), TINY, path)
    return path


def random_pixels(count: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_file_equals_the_network_at_any_batch_size(file: Path, batch: int) -> None:
    expected = predict_torch(random_network(), random_pixels(7), np.arange(batch))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(predict_file(file, random_pixels(7), np.arange(batch)), expected, atol=1e-5)


def test_deployable_is_preprocessing_and_network() -> None:
    with torch.inference_mode():
        logits = Deployable(random_network())(torch.from_numpy(random_pixels(3)))
    np.testing.assert_allclose(
        logits.numpy(), predict_torch(random_network(), random_pixels(3), np.arange(3)), atol=1e-6
    )


def test_the_input_is_uint8_and_the_batch_size_is_free(file: Path) -> None:
    graph = onnx.load(file).graph
    (input_info,), (output_info,) = graph.input, graph.output
    assert (input_info.name, output_info.name) == ("pixels", "logits")
    assert input_info.type.tensor_type.elem_type == TensorProto.UINT8
    assert output_info.type.tensor_type.elem_type == TensorProto.FLOAT
    assert [dim.dim_param or dim.dim_value for dim in input_info.type.tensor_type.shape.dim] == ["N", 16, 16, 3]
    assert [dim.dim_param or dim.dim_value for dim in output_info.type.tensor_type.shape.dim] == ["N", 3]


def test_one_file_without_traces_of_the_machine(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    content = file.read_bytes()
    for private_text in (
        str(ROOT),
        str(Path.home()),
        "site-packages",
        "torch/nn",
        'File "',
        "stack_trace",
        "data_location",
    ):
        assert private_text.encode() not in content
    onnx.checker.check_model(onnx.load(file), full_check=True)


def test_the_file_names_the_known_weights_of_its_network(file: Path, tmp_path: Path) -> None:
    known = known_weights_details()
    architecture = TINY.with_known_weights(known)
    export_onnx(random_network(), architecture, tmp_path / "named.onnx")
    write_onnx(file.read_bytes(), tmp_path / "converted.onnx", architecture)
    for name in ("named.onnx", "converted.onnx"):
        (entry,) = onnx.load(tmp_path / name).metadata_props
        assert entry.key == "winnow.known_weights"
        assert [KnownWeightsDetails.model_validate(row) for row in json.loads(entry.value)] == [known]
    write_onnx(file.read_bytes(), tmp_path / "plain.onnx", TINY)
    assert (tmp_path / "plain.onnx").read_bytes() == file.read_bytes()
    assert not onnx.load(file).metadata_props


@pytest.mark.thorough
def test_the_bytes_do_not_depend_on_the_memory_format(file: Path, tmp_path: Path) -> None:
    export_onnx(random_network().to(memory_format=torch.channels_last).train(), TINY, tmp_path / "again.onnx")
    export_onnx(random_network(seed=4), TINY, tmp_path / "other.onnx")
    assert sha256_of(tmp_path / "again.onnx") == sha256_of(file)
    assert sha256_of(tmp_path / "other.onnx") != sha256_of(file)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_process_and_folder(file: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.winnow.deploy.test_onnx_export import TINY, random_network\n"
        "from winnow.deploy.onnx_export import export_onnx; export_onnx(random_network(), TINY, Path('model.onnx'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert sha256_of(tmp_path / "model.onnx") == sha256_of(file)


def flops(model: torch.nn.Module, side: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        ("resnet8", 32),
        ("resnet8 pruned", 16),
        ("resnet18", 32),
        pytest.param("mobilenet_v3_small", 64, marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", 32, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 32, marks=pytest.mark.slow),
    ],
)
def test_backbones_keep_their_logits_and_macs(backbone: str, side: int, tmp_path: Path) -> None:
    architecture = Architecture(backbone=backbone.split()[0], num_classes=3, image_size=side)
    model = random_network(architecture)
    if "pruned" in backbone:
        pruning_step = PruningStep(0.3, Criterion("magnitude", 0), 8, min_channels_by_layer(model, 0.75))
        architecture = remove_channels(model, architecture, pruning_step)
    export_onnx(model, architecture, tmp_path / "model.onnx")
    contents = inspect_onnx(tmp_path / "model.onnx")
    assert 2 * contents.macs == flops(model, side)
    assert (contents.int8_macs, contents.precision) == (0, "f32")
    expected = predict_torch(model, random_pixels(3, side), np.arange(3))
    logits = predict_file(tmp_path / "model.onnx", random_pixels(3, side), np.arange(3))
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.thorough
def test_zeros_are_counted_in_weights_only(tmp_path: Path) -> None:
    model = random_network()
    apply_masks(model, magnitude_masks(model, 0.5))
    export_onnx(model, TINY, tmp_path / "model.onnx")
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert inspect_onnx(tmp_path / "model.onnx").zeros == sum(int((weight == 0).sum()) for weight in weights)


def write_graph(path: Path, nodes: list[onnx.NodeProto], input_shape: list[object], **arrays: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "made at /home/someone",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        doc_string="/home/someone/script.py",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"trace": "/home/someone"})
    onnx.save(model, path)
    return path


def test_macs_of_a_matrix_count_every_token(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write_graph(tmp_path / "m.onnx", nodes, ["N", 5, 8], w=np.zeros((8, 4), np.float32))
    assert inspect_onnx(path) == OnnxContents(macs=5 * 8 * 4, int8_macs=0, zeros=32)


def test_dynamic_int8_is_recognised_by_its_zero_point(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = np.array([[7, 0], [7, 9], [1, 7]], np.uint8)
    path = write_graph(tmp_path / "m.onnx", nodes, ["N", 3], w=weights, w_zero=np.array(7, np.uint8))
    assert inspect_onnx(path) == OnnxContents(macs=6, int8_macs=6, zeros=3)
    assert inspect_onnx(path).precision == "int8"


def test_doc_strings_are_removed_and_no_other_file_is_written(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], doc_string="/home/someone")]
    path = write_graph(tmp_path / "m.onnx", nodes, ["N", 2], w=np.ones((2, 2), np.float32))
    assert b"/home/someone" in path.read_bytes()
    save_onnx(load_onnx(path), path)
    assert b"/home/someone" not in path.read_bytes()
    assert [path_left.name for path_left in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("content", [None, b"", b"no ONNX file at all", b"half"])
def test_damaged_file_is_named(file: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(file.read_bytes()[:20_000] if content == b"half" else content)
    with pytest.raises(ArtifactError, match=r"model\.onnx cannot be read as an ONNX file; run its step again"):
        inspect_onnx(path)


def test_size_of_the_zipped_file(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(100_000))
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(100_000))
    assert zipped_bytes(tmp_path / "zeros") < 200
    assert zipped_bytes(tmp_path / "noise") == pytest.approx(100_000, rel=0.01)


def test_a_file_with_int8_macs_is_int8() -> None:
    assert OnnxContents(macs=100, int8_macs=10, zeros=0).precision == "int8"
    assert OnnxContents(macs=100, int8_macs=0, zeros=0).precision == "f32"
