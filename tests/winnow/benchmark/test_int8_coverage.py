from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from winnow.benchmark.int8_coverage import measure_int8_coverage
from winnow.deploy.onnx_export import float_layers, inspect_onnx, macs_by_node
from winnow.errors import ArtifactError
from winnow.records.benchmark import BenchmarkCase, Runtime


def make_case(runtime: Runtime) -> BenchmarkCase:
    return BenchmarkCase("some", runtime, "int8", "file", 4, 2)


@pytest.mark.parametrize("runtime", ["ort", "openvino", "openvino-throughput"])
def test_an_int8_file_runs_in_int8_and_a_float_file_does_not(
    runtime: Runtime, tiny_candidate: Callable[[str], Path], tiny_dense: Path
) -> None:
    coverage = measure_int8_coverage(tiny_candidate("dense-int8"), make_case(runtime))
    assert coverage.int8_share > 0.99
    assert (coverage.candidate, coverage.runtime) == ("some", runtime)
    assert sum(coverage.kernels.values()) == pytest.approx(1, abs=1e-6)
    assert measure_int8_coverage(tiny_dense, make_case(runtime)).int8_share == 0


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
def test_a_layer_computed_in_float_lowers_the_coverage(
    runtime: Runtime, tiny_candidate: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its int8 weights are dequantized before use: stored small, computed slowly."""
    shutil.copytree(tiny_candidate("dense-int8"), tmp_path / "some")
    path = tmp_path / "some" / "model.onnx"
    proto = onnx.load(path)
    macs = macs_by_node(path)
    largest = max(macs, key=lambda name: macs[name])
    node = next(node for node in proto.graph.node if node.name == largest)
    # Its input bypasses the Q/DQ pair: a runtime can no longer fuse it.
    producers = {name: layer for layer in proto.graph.node for name in layer.output}
    node.input[0] = producers[producers[node.input[0]].input[0]].input[0]
    onnx.save(proto, path)
    assert inspect_onnx(path).int8_macs == inspect_onnx(path).macs
    coverage = measure_int8_coverage(tmp_path / "some", make_case(runtime))
    expected_share = 1 - macs[largest] / sum(macs.values())
    assert (
        expected_share - 0.1 < coverage.int8_share <= expected_share + 0.001
    )  # a neighbour may lose its fused pair, too


def test_macs_of_nodes_add_up(tiny_dense: Path, tiny_candidate: Callable[[str], Path]) -> None:
    for folder, float_layer_count in ((tiny_dense, 10), (tiny_candidate("dense-int8"), 0)):
        path = folder / "model.onnx"
        assert sum(macs_by_node(path).values()) == inspect_onnx(path).macs
        assert len(float_layers(path)) == float_layer_count
    assert np.prod([len(macs_by_node(tiny_dense / "model.onnx"))]) == 10


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read as an ONNX file"):
        measure_int8_coverage(tmp_path, make_case("ort"))
