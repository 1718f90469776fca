from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import winnow.benchmark.memory_footprint
from tests.winnow.deploy.test_inference_runtimes import make_candidate
from winnow.benchmark.memory_footprint import measure_footprint, peak_mb
from winnow.errors import ArtifactError
from winnow.records.benchmark import BenchmarkCase, Precision, Runtime

SIDE = 16


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_candidate(tmp_path_factory.mktemp("served") / "dense")


def cell(runtime: Runtime, precision: Precision = "f32") -> BenchmarkCase:
    return BenchmarkCase("dense", runtime, precision, "contiguous" if runtime == "eager" else "file", 1, 1)


PEAKS = """
import json
import numpy as np
from winnow.benchmark.memory_footprint import peak_mb

before = peak_mb()
block = np.ones(300_000_000 // 8)
during = peak_mb()
del block
print(json.dumps([before, during, peak_mb()]))
"""


def test_the_peak_sees_what_was_given_back() -> None:
    """In a process of its own: a high-water mark does not move where something larger ran before."""
    environment = {**os.environ, "PYTHONPATH": str(Path(winnow.benchmark.memory_footprint.__file__).parents[2])}
    output = subprocess.run([sys.executable, "-c", PEAKS], env=environment, stdout=subprocess.PIPE, check=True).stdout
    before, during, after = json.loads(output)
    assert during > before + 200  # what the imports gave back is used again
    assert after > during - 1 > 290  # the kernel counts in strides


@pytest.mark.slow
def test_figures_are_those_of_a_fresh_process_and_its_runtime(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = np.ones(600_000_000 // 8)  # this process is large, its child must not look so
    ort = measure_footprint(served, cell("ort"), SIDE)
    assert (ort.candidate, ort.runtime, ort.precision) == ("dense", "ort", "f32")
    assert set(ort.model_dump()) == {
        *("candidate", "runtime", "precision", "import_ms", "load_ms", "first_call_ms", "peak_mb")
    }
    assert min(ort.import_ms, ort.load_ms, ort.first_call_ms) > 0
    assert 20 < ort.peak_mb < 300 < len(block) * 8 / 1e6 < peak_mb()
    # A path may be relative; and memory is much the same each time.
    monkeypatch.chdir(served.parent)
    again = measure_footprint(Path(served.name), cell("ort"), SIDE)
    assert again.peak_mb == pytest.approx(ort.peak_mb, rel=0.1)
    eager = measure_footprint(served, cell("eager"), SIDE)
    assert eager.peak_mb > 1.3 * ort.peak_mb  # all of torch is in it


def test_openvino_too(served: Path) -> None:
    measurements = measure_footprint(served, cell("openvino", "int8"), SIDE)
    assert (measurements.runtime, measurements.precision) == ("openvino", "int8")
    assert measurements.peak_mb > 20


def test_a_file_that_cannot_be_served_gives_the_childs_last_words(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"could not run the model in a separate process \(.*model\.onnx is"):
        measure_footprint(tmp_path, cell("ort"), SIDE)


def test_a_child_that_hangs_is_an_error(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winnow.benchmark.memory_footprint, "TIMEOUT_SECONDS", 0.05)
    with pytest.raises(ArtifactError, match=r"ort did not finish within 0\.05 s"):
        measure_footprint(served, cell("ort"), SIDE)


def test_the_environment_goes_along(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text('raise ImportError("mine")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ArtifactError, match=r"in a separate process \(ImportError: mine\)"):
        measure_footprint(served, cell("ort"), SIDE)
