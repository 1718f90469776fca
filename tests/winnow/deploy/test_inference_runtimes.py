from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.closure import ROOT
from tests.winnow.deploy.conftest import BATCH
from winnow.deploy.inference_runtimes import open_case
from winnow.errors import ArtifactError, MissingExtra
from winnow.hardware import has_fast_bf16
from winnow.records.benchmark import BenchmarkCase

CASES = {
    "eager": BenchmarkCase("dense", "eager", "f32", "contiguous", BATCH, 2),
    "eager, channels last": BenchmarkCase("dense", "eager", "f32", "channels_last", BATCH, 2),
    "ort": BenchmarkCase("dense", "ort", "f32", "file", BATCH, 2),
    "openvino": BenchmarkCase("dense", "openvino", "f32", "file", BATCH, 2),
    "openvino, streams": BenchmarkCase("dense", "openvino-throughput", "f32", "file", BATCH, 2),
    "ort, int8": BenchmarkCase("dense", "ort", "int8", "file", BATCH, 1),  # the file keeps its precision
    "openvino, int8": BenchmarkCase("dense", "openvino", "int8", "file", BATCH, 1),
}


@pytest.mark.parametrize("name", list(CASES))
def test_every_runtime_gives_the_logits_of_the_network(
    candidate_folder: Path, pixels: np.ndarray, expected_logits: np.ndarray, name: str
) -> None:
    predict = open_case(candidate_folder, CASES[name])
    logits = predict(pixels)
    assert (logits.dtype, logits.shape) == (np.float32, (BATCH, 3))
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4 * max(1.0, np.abs(expected_logits).max()))
    np.testing.assert_array_equal(predict(pixels), logits)  # a second call gives the same
    assert pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("name", list(CASES))
def test_logits_do_not_depend_on_other_images(candidate_folder: Path, pixels: np.ndarray, name: str) -> None:
    predict = open_case(candidate_folder, CASES[name])
    order = np.random.default_rng(0).permutation(BATCH)
    logits = predict(pixels)
    np.testing.assert_allclose(
        predict(pixels[order]), logits[order], rtol=0, atol=1e-4 * max(1.0, np.abs(logits).max())
    )
    assert np.abs(logits[1:] - logits[:-1]).max() > 1e-2  # images have different logits
    np.testing.assert_array_equal(predict(pixels), logits)  # earlier logits are not overwritten


@pytest.mark.parametrize("name", ["openvino", "openvino, streams"])
def test_openvino_refuses_other_batches_than_it_is_open_for(
    candidate_folder: Path, pixels: np.ndarray, name: str
) -> None:
    predict = open_case(candidate_folder, CASES[name])
    with pytest.raises(ValueError, match="open for pixels of shape"):
        predict(pixels[:1])  # one image could be broadcast to the whole batch


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
        "from winnow.deploy.inference_runtimes import open_case\n"
        "from winnow.records.benchmark import BenchmarkCase\n"
        f"case = BenchmarkCase('dense', {runtime!r}, 'f32', 'file', 1, 1)\n"
        f"predict = open_case(Path({str(candidate_folder)!r}), case)\n"
        "print(predict(np.zeros((1, 16, 16, 3), np.uint8)).shape, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(1, 3) False"
