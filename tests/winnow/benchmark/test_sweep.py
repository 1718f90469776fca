from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.project.paths import ProjectPaths
from winnow.benchmark.sweep import best_sweep_row, sweep, sweep_cases, thread_counts
from winnow.cli.sweep import run_sweep
from winnow.config import Benchmark, Config
from winnow.data.dataset import ImageSet
from winnow.errors import ConfigError
from winnow.hardware import cores

SETTINGS = Benchmark(large_batch=8, samples=20, rounds=6, warm_up_ms=0, timed_ms=0)


def test_threads_double_up_to_all() -> None:
    assert [thread_counts(cores) for cores in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_streams_need_equal_shares_of_the_batch(fast_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.deploy.runtime_properties.has_fast_bf16", lambda: fast_bf16)
    grid = sweep_cases("dense", "int8", (9, 1, 9), (1, 2, 6))
    assert [(case.batch, case.threads) for case in grid if case.runtime == "openvino-throughput"] == [(9, 6)] * (
        1 + fast_bf16
    )
    assert {case.batch for case in grid} == {1, 9}
    assert {case.precision for case in grid} == ({"int8", "int8-bf16"} if fast_bf16 else {"int8"})


@pytest.mark.thorough
def test_every_correct_combination_is_timed(tiny_candidate: Callable[[str], Path], tiny_set: ImageSet) -> None:
    result = sweep("dense", tiny_candidate("dense"), "f32", tiny_set, (1, 4), SETTINGS)
    timed = {(row.runtime, row.batch, row.threads) for row in result.rows if row.precision == "f32"}
    counts = thread_counts(cores())
    whole_machine = {(runtime, batch, count) for runtime in ("ort", "openvino") for batch in (1, 4) for count in counts}
    assert timed == whole_machine | {("openvino-throughput", 4, count) for count in counts if math.gcd(4, count) > 1}
    fastest, most_images = best_sweep_row(result.rows, "latency"), best_sweep_row(result.rows, "throughput")
    assert fastest is not None
    assert most_images is not None
    assert fastest.p50_ms == min(row.p50_ms for row in result.rows)
    assert most_images.images_per_s == max(row.images_per_s for row in result.rows)
    assert best_sweep_row([], "latency") is None


@pytest.mark.thorough
def test_the_command_writes_a_table_and_a_plot(
    tiny_candidate: Callable[[str], Path],
    tiny_data: Path,
    tiny_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "artifacts" / "candidates").mkdir(parents=True)
    (tmp_path / "artifacts" / "candidates" / "dense-int8").symlink_to(tiny_candidate("dense-int8"))
    (tmp_path / "artifacts" / "data").symlink_to(tiny_data)
    config = tiny_config.model_copy(update={"benchmark": SETTINGS})
    assert run_sweep(ProjectPaths(tmp_path), config, "dense-int8", (1, 2)) == 0
    out = tmp_path / ".winnow" / "sweep" / "dense-int8"
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["batch"] for row in rows} == {"1", "2"}
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "Shortest call: " in output
    assert "Most images: " in output
    with pytest.raises(ConfigError, match="no candidate has won; name one"):
        run_sweep(ProjectPaths(tmp_path), config, "", ())
    with pytest.raises(ConfigError, match=r"dense: no candidate of that name has a model\.onnx"):
        run_sweep(ProjectPaths(tmp_path), config, "dense", ())
