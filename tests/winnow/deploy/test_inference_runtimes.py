from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from tests.closure import ROOT
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.inference_runtimes import RuntimeUnavailable, open_case, set_torch_threads
from winnow.deploy.onnx_export import export_onnx
from winnow.errors import ArtifactError, MissingExtra
from winnow.hardware import cores, cpu_flags, has_fast_bf16
from winnow.models.backbones import Architecture, build_model, load_model, save_model
from winnow.records.benchmark import BenchmarkCase

BATCH = 12
CELLS = {
    "eager": BenchmarkCase("dense", "eager", "f32", "contiguous", BATCH, 2),
    "eager, channels last": BenchmarkCase("dense", "eager", "f32", "channels_last", BATCH, 2),
    "ort": BenchmarkCase("dense", "ort", "f32", "file", BATCH, 2),
    "openvino": BenchmarkCase("dense", "openvino", "f32", "file", BATCH, 2),
    "openvino, streams": BenchmarkCase("dense", "openvino-throughput", "f32", "file", BATCH, 2),
    "ort, int8": BenchmarkCase("dense", "ort", "int8", "file", BATCH, 1),  # the file keeps its precision
    "openvino, int8": BenchmarkCase("dense", "openvino", "int8", "file", BATCH, 1),
}


def make_candidate(folder: Path) -> Path:
    """Write the files of a candidate that runtimes open: an untrained network of three classes, 16x16 pixels."""
    folder.mkdir()
    architecture = Architecture(backbone="resnet8", num_classes=3, image_size=16)
    model = build_model(architecture, seed=1)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def candidate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_candidate(tmp_path_factory.mktemp("served") / "dense")


@pytest.fixture(scope="module")
def pixels(tiny_set: ImageSet) -> np.ndarray:
    return np.ascontiguousarray(tiny_set.images_NHWC[tiny_set.indices(VALIDATION)[:BATCH]])


@pytest.fixture(scope="module")
def expected_logits(candidate_folder: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the network's logits with torchvision's preprocessing, in double precision."""
    model = load_model(candidate_folder)[0].double()
    images = torch.stack([reference.to_tensor(image) for image in pixels]).double()
    with torch.inference_mode():
        logits: np.ndarray = model(reference.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).numpy()
    return logits


@pytest.mark.parametrize("name", list(CELLS))
def test_every_runtime_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, name: str
) -> None:
    predict = open_case(candidate_folder, CELLS[name])
    logits = predict(pixels)
    assert (logits.dtype, logits.shape) == (np.float32, (BATCH, 3))
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4 * max(1.0, np.abs(expected_logits).max()))
    np.testing.assert_array_equal(predict(pixels), logits)  # a second call gives the same
    assert pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("name", list(CELLS))
def test_logits_do_not_depend_on_other_images(candidate_folder: Path, pixels: np.ndarray, name: str) -> None:
    predict = open_case(candidate_folder, CELLS[name])
    order = np.random.default_rng(0).permutation(BATCH)
    logits = predict(pixels).copy()
    np.testing.assert_allclose(
        predict(pixels[order]), logits[order], rtol=0, atol=1e-4 * max(1.0, np.abs(logits).max())
    )
    assert np.abs(logits[1:] - logits[:-1]).max() > 1e-2  # images have different logits
    np.testing.assert_array_equal(predict(pixels), logits)  # earlier logits are not overwritten


@pytest.mark.parametrize(
    ("runtime", "layout"), [("eager", "contiguous"), ("eager", "channels_last"), ("openvino", "file")]
)
def test_bf16_is_close_to_f32_but_not_equal(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, runtime: str, layout: str
) -> None:
    if runtime == "openvino" and not has_fast_bf16():
        pytest.skip("OpenVINO runs bf16 on processors that have it")
    logits = open_case(candidate_folder, BenchmarkCase("dense", runtime, "bf16", layout, BATCH, 2))(pixels)  # type: ignore[arg-type]
    assert logits.dtype == np.float32
    relative_error = np.abs(logits - expected_logits).max() / max(1.0, np.abs(expected_logits).max())
    assert 1e-4 < relative_error < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, BATCH])
def test_torch_compile_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, batch: int
) -> None:
    predict = open_case(candidate_folder, BenchmarkCase("dense", "compile", "f32", "channels_last", batch, 2))
    logits = predict(pixels[:batch])
    np.testing.assert_allclose(
        logits, expected_logits[:batch], rtol=0, atol=1e-4 * max(1.0, np.abs(expected_logits).max())
    )


def test_torch_compile_needs_a_compiler(
    candidate_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match=r"g\+\+ is not on the PATH"):
        open_case(candidate_folder, BenchmarkCase("dense", "compile", "f32", "channels_last", 1, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_gpu_runtimes_need_a_gpu(candidate_folder: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no CUDA device"):
        open_case(candidate_folder, BenchmarkCase("dense", "eager-cuda", "f32", "channels_last", 1, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(
    ("runtime", "requirement"), [("ort-cuda", "the extra cuda"), ("ort-tensorrt", "tensorrt-cu13")]
)
def test_onnxruntime_on_the_gpu_names_its_requirements(candidate_folder: Path, runtime: str, requirement: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"needs an NVIDIA GPU and .*{requirement}"):
        open_case(candidate_folder, BenchmarkCase("dense", runtime, "f32", "file", 1, 1))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["ort-cuda", "ort-tensorrt"])
def test_onnxruntime_on_the_gpu_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, runtime: str
) -> None:
    try:
        predict = open_case(candidate_folder, BenchmarkCase("dense", runtime, "f32", "file", BATCH, 1))  # type: ignore[arg-type]
    except RuntimeUnavailable as reason:
        pytest.skip(str(reason))
    np.testing.assert_allclose(
        predict(pixels), expected_logits, rtol=0, atol=1e-2 * max(1.0, np.abs(expected_logits).max())
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_gpu_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, precision: str
) -> None:
    logits = open_case(candidate_folder, BenchmarkCase("dense", "eager-cuda", precision, "channels_last", BATCH, 1))(
        pixels
    )  # type: ignore[arg-type]
    tolerance = (1e-2 if precision == "f32" else 0.1) * max(1.0, np.abs(expected_logits).max())
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=tolerance)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("runtime", "name", "damage", "message"),
    [
        ("ort", "model.onnx", Path.unlink, r"model\.onnx is missing; run the step"),
        ("openvino", "model.onnx", Path.unlink, r"model\.onnx is missing; run the step"),
        ("ort", "model.onnx", truncate, r"model\.onnx is damaged"),
        ("openvino", "model.onnx", truncate, r"model\.onnx is damaged"),
        ("ort", "model.onnx", lambda path: path.write_bytes(b""), r"model\.onnx is damaged"),
        ("openvino", "model.onnx", lambda path: path.write_bytes(b""), r"model\.onnx is damaged"),
        ("ort", "model.onnx", lambda path: path.write_bytes(b"text" * 99), r"model\.onnx is damaged"),
        ("openvino", "model.onnx", lambda path: path.write_bytes(b"text" * 99), r"model\.onnx is damaged"),
        ("eager", "weights.safetensors", truncate, r"weights\.safetensors is missing or damaged"),
        ("eager", "architecture.json", Path.unlink, r"architecture\.json is missing"),
    ],
)
def test_a_damaged_file_is_an_error_with_a_remedy(
    candidate_folder: Path, tmp_path: Path, runtime: str, name: str, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(candidate_folder, folder)
    damage(folder / name)
    with pytest.raises(ArtifactError, match=message):
        open_case(folder, BenchmarkCase("dense", runtime, "f32", "contiguous", 1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("runtime", "package"), [("ort", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_names_its_extra(
    candidate_folder: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # makes the import fail
    with pytest.raises(MissingExtra, match=rf"'{package}' is not installed.*winnow-vision\[runtimes\]"):
        open_case(candidate_folder, BenchmarkCase("dense", runtime, "f32", "file", 1, 1))  # type: ignore[arg-type]


@pytest.mark.thorough
@pytest.mark.parametrize("runtime", ["ort", "openvino"])
def test_onnx_runtimes_do_not_import_torch(candidate_folder: Path, runtime: str) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from winnow.deploy.inference_runtimes import BenchmarkCase, open_case\n"
        f"case = BenchmarkCase('dense', {runtime!r}, 'f32', 'file', 1, 1)\n"
        f"predict = open_case(Path({str(candidate_folder)!r}), case)\n"
        "print(predict(np.zeros((1, 16, 16, 3), np.uint8)).shape, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(1, 3) False"


RAISE_CTRL_C = """
import signal
from pathlib import Path
from winnow.deploy.inference_runtimes import open_case
from winnow.records.benchmark import BenchmarkCase

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born with Ctrl-C ignored
cell = BenchmarkCase("dense", "openvino", "f32", "file", 1, 1)
cells = [open_case(Path({folder!r}), cell) for _ in range(3)]
while cells:
    cells.pop(0)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("heard", len(cells))
"""


@pytest.mark.thorough
def test_ctrl_c_is_heard_after_models_of_openvino_were_closed_in_any_order(candidate_folder: Path) -> None:
    code = RAISE_CTRL_C.format(folder=str(candidate_folder))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.split("\n")[:-1]) == (0, ["heard 2", "heard 1", "heard 0"]), result.stderr


def test_threads_and_flags() -> None:
    previous = torch.get_num_threads()
    assert set_torch_threads(1) == previous
    assert (torch.get_num_threads(), set_torch_threads(previous)) == (1, 1)
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
    assert has_fast_bf16() == bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
