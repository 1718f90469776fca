from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import winnow.benchmark.memory_footprint
from tests.winnow.deploy.untrained_candidate import make_candidate
from winnow.benchmark.memory_footprint import measure_footprint, peak_mb
from winnow.errors import ArtifactError
from winnow.records.benchmark import BenchmarkCase, Precision, Runtime

SIDE = 16


@pytest.fixture(scope="module")
def candidate_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_candidate(tmp_path_factory.mktemp("served") / "dense")


def make_case(runtime: Runtime, precision: Precision = "f32") -> BenchmarkCase:
    return BenchmarkCase("dense", runtime, precision, "contiguous" if runtime == "eager" else "file", 1, 1)


MEASURE_PEAKS = """
import json
import numpy as np
from winnow.benchmark.memory_footprint import peak_mb

before = peak_mb()
block = np.ones(300_000_000 // 8)
during = peak_mb()
del block
print(json.dumps([before, during, peak_mb()]))
"""


def test_the_peak_includes_freed_memory() -> None:
    """Run in a child process: the peak of this process may already be higher."""
    environment = {**os.environ, "PYTHONPATH": str(Path(winnow.benchmark.memory_footprint.__file__).parents[2])}
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAKS], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout
    before, during, after = json.loads(output)
    assert during > before + 200  # memory freed by the imports is reused
    assert after > during - 1 > 290  # the kernel's counter is coarse


@pytest.mark.slow
def test_the_footprint_is_that_of_a_fresh_process(candidate_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = np.ones(600_000_000 // 8)  # this process is large, its child must not be
    ort = measure_footprint(candidate_folder, make_case("ort"), SIDE)
    assert (ort.candidate, ort.runtime, ort.precision) == ("dense", "ort", "f32")
    assert set(ort.model_dump()) == {
        *("candidate", "runtime", "precision", "import_ms", "load_ms", "first_call_ms", "peak_mb")
    }
    assert min(ort.import_ms, ort.load_ms, ort.first_call_ms) > 0
    assert 20 < ort.peak_mb < 300 < len(block) * 8 / 1e6 < peak_mb()
    # A path may be relative; memory varies little between runs.
    monkeypatch.chdir(candidate_folder.parent)
    repeated = measure_footprint(Path(candidate_folder.name), make_case("ort"), SIDE)
    assert repeated.peak_mb == pytest.approx(ort.peak_mb, rel=0.1)
    eager = measure_footprint(candidate_folder, make_case("eager"), SIDE)
    assert eager.peak_mb > 1.3 * ort.peak_mb  # it loads torch


def test_footprint_of_openvino(candidate_folder: Path) -> None:
    measurements = measure_footprint(candidate_folder, make_case("openvino", "int8"), SIDE)
    assert (measurements.runtime, measurements.precision) == ("openvino", "int8")
    assert measurements.peak_mb > 20


def test_an_invalid_file_raises_the_last_output_of_the_child(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"could not run the model in a separate process \(.*model\.onnx is"):
        measure_footprint(tmp_path, make_case("ort"), SIDE)


def test_a_child_that_hangs_is_an_error(candidate_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winnow.benchmark.memory_footprint, "TIMEOUT_SECONDS", 0.05)
    with pytest.raises(ArtifactError, match=r"ort did not finish within 0\.05 s"):
        measure_footprint(candidate_folder, make_case("ort"), SIDE)


def test_the_child_inherits_the_environment(
    candidate_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text('raise ImportError("mine")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"in a separate process \(ImportError: mine\)"):
        measure_footprint(candidate_folder, make_case("ort"), SIDE)
