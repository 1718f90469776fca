"""Check that the formats beside ONNX predict as the ONNX file does, read by their own libraries alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import SIZE
from tests.winnow.deploy.conftest import DEPLOYMENT_FIELDS
from winnow.config import Benchmark
from winnow.deploy.batch_inference import predict_file
from winnow.deploy.bundle import HostCheck, OtherFormats, export_model
from winnow.deploy.export_formats import write_format
from winnow.errors import ArtifactError, ConfigError, DataError

CHECK = HostCheck(Benchmark(), None)
PIXELS_NHWC = np.random.default_rng(5).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
READERS = {
    "torch": """
import sys, numpy, torch
pixels = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], torch.export.load(sys.argv[1] + "/torch/model.pt2").module()(pixels).detach().numpy())
""",
    "openvino": """
import sys, numpy, openvino
core, pixels = openvino.Core(), numpy.load(sys.argv[2])
model = core.read_model(sys.argv[1] + "/openvino/model.xml")
model.reshape(pixels.shape)
numpy.save(sys.argv[3], core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0])
""",
}


@pytest.fixture(scope="module")
def deployed(tiny_candidate: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a candidate with the card of a promoted model."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "promoted"
        shutil.copytree(tiny_candidate(name), folder)
        card = json.loads((folder / "card.json").read_text()) | DEPLOYMENT_FIELDS
        (folder / "card.json").write_text(json.dumps(card))
        return folder

    return make


@pytest.mark.parametrize(("name", "form"), [("pruned", "torch"), ("pruned", "openvino"), ("dense-int8", "openvino")])
def test_a_format_predicts_as_the_onnx_file(
    deployed: Callable[[str], Path], name: str, form: str, tmp_path: Path
) -> None:
    folder, out = deployed(name), tmp_path / "out"
    for _ in range(2):  # an earlier export is replaced
        export_model(folder, out, "photos", CHECK, OtherFormats((form,), folder))
    assert f"`{form}/model." in (out / "README.md").read_text(encoding="utf-8")
    np.save(tmp_path / "pixels.npy", PIXELS_NHWC)
    command = [sys.executable, "-I", "-c", READERS[form], out, tmp_path / "pixels.npy", tmp_path / "logits.npy"]
    subprocess.run(command, check=True, capture_output=True)
    logits_NC = np.load(tmp_path / "logits.npy")
    expected_NC = predict_file(out / "model.onnx", PIXELS_NHWC, np.arange(len(PIXELS_NHWC)))
    assert (logits_NC.argmax(1) == expected_NC.argmax(1)).mean() >= (0.95 if name == "dense-int8" else 1.0)
    if name != "dense-int8":
        np.testing.assert_allclose(logits_NC, expected_NC, rtol=1e-3, atol=1e-3)


def test_torch_needs_a_float_network(deployed: Callable[[str], Path], tmp_path: Path) -> None:
    for name, message in (("dense-int8", "the model is int8"), ("pruned", "is not among the artifacts here")):
        with pytest.raises(ConfigError, match=message):
            export_model(deployed(name), tmp_path / "out", "photos", CHECK, OtherFormats(("torch",), None))
        assert not list(tmp_path.iterdir())


def test_another_network_is_not_exported(deployed: Callable[[str], Path], tmp_path: Path) -> None:
    folder, other = deployed("pruned"), deployed("student")
    with pytest.raises(ArtifactError, match=r"--format torch: .* differ by up to .*; it is not exported"):
        export_model(folder, tmp_path / "out", "photos", CHECK, OtherFormats(("torch",), other))
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_kept(deployed: Callable[[str], Path], tmp_path: Path) -> None:
    export_model(deployed("dense-int8"), tmp_path / "out", "photos", CHECK, OtherFormats(("openvino",)))
    (tmp_path / "out/openvino/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        export_model(deployed("dense-int8"), tmp_path / "out", "photos", CHECK)


def test_the_folder_of_a_format_is_new(deployed: Callable[[str], Path]) -> None:
    folder = deployed("dense-int8")
    write_format("openvino", folder, "int8", PIXELS_NHWC[:8], None)
    assert sorted(path.name for path in (folder / "openvino").iterdir()) == ["model.bin", "model.xml"]
