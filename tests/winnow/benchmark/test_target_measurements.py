from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import SIZE, tiny_params
from winnow.benchmark.measurement_error import REPEATED_DENSE, time_difference
from winnow.benchmark.target_measurements import TargetMeasurements, read_measurements, speeds_on_target
from winnow.cli.params_editor import apply_assignments
from winnow.config import Benchmark, check_config
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.bundle import select_check_pixels, write_host_check
from winnow.errors import ArtifactError, DataError
from winnow.hardware import int8_sums_saturate
from winnow.records import sha256_of, this_machine
from winnow.records.benchmark import BestRows
from winnow.selection.selection_warnings import describe_overflow, overflowing_candidates

SETTINGS = Benchmark(large_batch=8, samples=20, rounds=6, warm_up_ms=0, timed_ms=0)
NAMES = ("dense", "dense-int8")


@pytest.fixture(scope="module")
def bundle(tiny_candidate: Callable[[str], Path], tiny_set: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that is copied to the target machine."""
    out = tmp_path_factory.mktemp("hosts") / "export"
    out.mkdir()
    models = [(name, tiny_candidate(name) / "model.onnx", "int8" if "int8" in name else "f32") for name in NAMES]
    write_host_check(out, models, select_check_pixels(tiny_set, SIZE), SETTINGS)
    return out


def run_check_host(bundle: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as on the target machine: without winnow on the path, from any folder."""
    command = [sys.executable, "-I", str(bundle / "check_host.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measurements(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> TargetMeasurements:
    folder = tmp_path_factory.mktemp("there")
    result = run_check_host(bundle, folder)
    assert result.returncode == 0, result.stderr
    assert "round 6 of 6, about 0 s left" in result.stdout
    assert "copy this file back: " in result.stdout
    return read_measurements(folder / "host.json")


@pytest.mark.thorough
def test_measurements_without_dense_are_reported_as_useless_for_gates(
    tiny_candidate: Callable[[str], Path], tiny_set: ImageSet, tmp_path: Path
) -> None:
    model = ("dense-int8", tiny_candidate("dense-int8") / "model.onnx", "int8")
    (tmp_path / "alone").mkdir()
    write_host_check(tmp_path / "alone", [model], select_check_pixels(tiny_set, SIZE), SETTINGS)
    result = run_check_host(tmp_path / "alone", tmp_path)
    assert "gates need all candidates (winnow export DIR --candidates): " in result.stdout
    assert "copy this file back" not in result.stdout


def test_the_script_does_not_import_winnow(bundle: Path) -> None:
    text = (bundle / "check_host.py").read_text()
    assert "from winnow" not in text
    assert "import winnow" not in text


def test_every_case_is_timed_with_its_machine(bundle: Path, measurements: TargetMeasurements) -> None:
    machine = this_machine()
    assert (measurements.machine.cpu, measurements.machine.threads) == (machine.cpu, machine.threads)
    assert set(machine.flags) <= set(measurements.machine.flags)
    assert {"onnxruntime", "numpy", "pillow", "openvino"} <= set(measurements.machine.versions)
    timed = {(row.candidate, row.runtime, row.batch, row.threads) for row in measurements.rows}
    expected = {
        (name, runtime, batch, threads)
        for name in NAMES
        for runtime in ("ort", "openvino")
        for batch in (1, 8)
        for threads in {1, machine.threads}
    }
    assert expected <= timed
    stream_cases = {(name, "openvino-throughput", 8, count) for name in NAMES for count in {machine.threads} - {1}}
    repeated = {case for case in timed if case[0] == REPEATED_DENSE}
    assert timed - expected - repeated == stream_cases
    assert sorted(batch for _, _, batch, _ in repeated) == [1, 8]
    assert all(row.p50_ms > 0 and row.samples in (24, 18, 8, 6) and row.p95_ms is None for row in measurements.rows)
    assert {row.sha256 for row in measurements.rows} == {sha256_of(bundle / "check" / f"{name}.onnx") for name in NAMES}


def test_the_check_images_are_of_the_validation_split(tiny_set: ImageSet) -> None:
    pixels = select_check_pixels(tiny_set, SIZE)
    validation = tiny_set.images_NHWC[tiny_set.indices(VALIDATION)]
    assert all((validation == image).all(axis=(1, 2, 3)).any() for image in pixels)
    assert select_check_pixels(tiny_set, 40).shape == (64, 40, 40, 3)
    assert np.array_equal(select_check_pixels(None, 40), select_check_pixels(None, 40))


def test_speeds_are_read_for_present_files_only(bundle: Path, measurements: TargetMeasurements) -> None:
    digests = {name: sha256_of(bundle / "check" / f"{name}.onnx") for name in NAMES}
    speeds = speeds_on_target(measurements, digests | {"newer": "0" * 64}, 8)
    assert speeds.best["newer"] == BestRows(latency=None, throughput=None)
    assert speeds.candidates["newer"] == {}
    assert speeds.candidates["dense"]["speedup/float_b1"] == 1.0
    int8_speeds = speeds.candidates["dense-int8"]
    rows = [row for row in measurements.rows if row.batch == 1 and not row.screened]  # a lucky screening is ignored
    fastest = {name: min(row.p50_ms for row in rows if row.candidate == name) for name in NAMES}
    assert int8_speeds["best/latency_ms"] == fastest["dense-int8"]
    assert int8_speeds["speedup/float_b1"] == pytest.approx(fastest["dense"] / fastest["dense-int8"])
    speeds_without_dense = speeds_on_target(measurements, digests | {"dense": "1" * 64}, 8).candidates
    assert speeds_without_dense["dense"] == {}
    assert "speedup/float_b1" not in speeds_without_dense["dense-int8"]
    assert speeds_without_dense["dense-int8"]["best/latency_ms"] == int8_speeds["best/latency_ms"]
    with pytest.raises(ArtifactError, match=r"are for batches of 8, but benchmark\.large_batch is 64"):
        speeds_on_target(measurements, digests, 64)


def test_dense_is_timed_twice_for_the_measurement_error(bundle: Path, measurements: TargetMeasurements) -> None:
    digests = {name: sha256_of(bundle / "check" / f"{name}.onnx") for name in NAMES}
    speeds = speeds_on_target(measurements, digests, 8)
    assert {row.candidates for row in speeds.measurement_error} == {("dense", REPEATED_DENSE)}
    assert [row.batch for row in speeds.measurement_error] == [8, 1]
    best = speeds.best["dense"].latency
    assert best is not None
    repeated = next(row for row in measurements.rows if row.candidate == REPEATED_DENSE and row.batch == 1)
    assert speeds.measurement_error[1].error == time_difference(best.p50_ms, repeated.p50_ms)
    without = measurements.model_copy(
        update={"rows": tuple(row for row in measurements.rows if row.candidate != REPEATED_DENSE)}
    )
    assert speeds_on_target(without, digests, 8).measurement_error == []  # a file of an earlier version


@pytest.mark.thorough
def test_wrong_predictions_are_refused_and_a_changed_file_is_an_error(bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "wrong"
    shutil.copytree(bundle, changed)
    manifest = json.loads((changed / "check" / "manifest.json").read_text())
    manifest["models"][1]["answers"] = [(answer + 1) % 3 for answer in manifest["models"][1]["answers"]]
    (changed / "check" / "manifest.json").write_text(json.dumps(manifest))
    assert run_check_host(changed, tmp_path).returncode == 0
    measurements = read_measurements(tmp_path / "host.json")
    assert {row.candidate for row in measurements.rows} == {"dense", REPEATED_DENSE}
    assert {case.candidate for case in measurements.refused} == {"dense-int8"}
    assert all("predictions agree on" in case.reason for case in measurements.refused)
    with (changed / "check" / "dense.onnx").open("ab") as file:
        file.write(b"x")
    result = run_check_host(changed, tmp_path)
    assert result.returncode == 1
    assert "is not the file that was exported" in result.stderr


def test_without_openvino_only_onnx_runtime_is_timed(bundle: Path, tmp_path: Path) -> None:
    code = "import runpy, sys; sys.modules['openvino'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, bundle / "check_host.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    measurements = read_measurements(tmp_path / "host.json")
    assert {row.runtime for row in measurements.rows} == {"ort"}
    assert "openvino" not in measurements.machine.versions


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "machine": {}, "rows": []}', "\x00"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(DataError, match=r"is not a file of check_host\.py"):
        read_measurements(tmp_path / "host.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_measurements(tmp_path / "nowhere.json")


def set_value(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set a value by its dotted path."""
    *folders, key = [int(part) if part.isdigit() else part for part in path.split(".")]
    section: Any = raw
    for folder in folders:
        section = section[folder]
    section[key] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("rows.0.p50_ms", value) for value in (-1, 0, math.nan, math.inf, True, "1", None, [1])),
        *(("rows.0.threads", value) for value in (-1, 0, 1.5, 10**30)),
        ("rows.0.round_ms.1", -1.0),
        ("rows.0.round_ms", []),
        ("rows.0.images_per_s", 0),
        ("rows.0.samples", -3),
        ("rows.0.agreement", 1.5),
        ("rows.0.sha256", "../x"),
        ("rows.0.runtime", "python"),
        ("rows.0.p95_ms", math.nan),
        ("machine.threads", -1),
        ("machine.memory_gb", math.nan),
        ("large_batch", 0),
    ],
)
def test_impossible_values_are_named(measurements: TargetMeasurements, tmp_path: Path, path: str, value: Any) -> None:
    raw = measurements.model_dump(mode="json")
    (tmp_path / "host.json").write_text(json.dumps(raw))
    assert read_measurements(tmp_path / "host.json") == measurements
    set_value(raw, path, value)
    (tmp_path / "host.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match=rf"host\.json is not a file of check_host\.py \(at {re.escape(path)}: "):
        read_measurements(tmp_path / "host.json")


@pytest.mark.parametrize("format_value", [99, 1, "2", True, None, [2]])
def test_another_format_is_refused(measurements: TargetMeasurements, tmp_path: Path, format_value: Any) -> None:
    (tmp_path / "host.json").write_text(json.dumps({**measurements.model_dump(mode="json"), "format": format_value}))
    with pytest.raises(DataError, match=r"host\.json is not a file of check_host\.py \(format is"):
        read_measurements(tmp_path / "host.json")


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"format":', "}")])
def test_deep_nesting_is_refused(tmp_path: Path, opening: str, closing: str) -> None:
    (tmp_path / "host.json").write_text(f'{{"format": 2, "machine": {opening * 100_000}1{closing * 100_000}}}')
    with pytest.raises(DataError, match=r"host\.json is not a file of check_host\.py"):
        read_measurements(tmp_path / "host.json")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx2",), ["static", "ladder"]),
        (("avx2", "avx512f"), ["static", "ladder"]),
        (("avx2", "avx_vnni"), []),
        (("avx512f", "avx512_vnni"), []),
        (("asimd", "asimddp"), []),
        ((), []),
    ],
)
def test_x86_without_vnni_saturates(
    measurements: TargetMeasurements, flags: tuple[str, ...], expected: list[str]
) -> None:
    quantized = {"from": "dense", "method": "quantize", "calibration_images": 32}
    candidates = {
        "static": quantized,
        "ladder": {**quantized, "scheme": "ladder"},
        "dynamic": {**quantized, "scheme": "dynamic"},
        "safe": {**quantized, "overflow_safe": True},
        "pruned": tiny_params()["candidates"]["pruned"],
    }
    config = check_config(tiny_params() | {"candidates": candidates})
    target = measurements.model_copy(update={"machine": measurements.machine.model_copy(update={"flags": flags})})
    assert overflowing_candidates(config, target.machine.flags) == expected
    assert int8_sums_saturate(flags) == bool(expected)
    if expected:
        command = describe_overflow(expected).partition("winnow run ")[2]
        params = yaml.safe_dump(tiny_params() | {"candidates": candidates})  # most keys have their defaults
        fixed_config = check_config(yaml.safe_load(apply_assignments(params, command.replace("-S ", "").split())))
        assert overflowing_candidates(fixed_config, target.machine.flags) == []
