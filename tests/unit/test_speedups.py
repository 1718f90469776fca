from __future__ import annotations

import math
from typing import Any

import pytest

from winnow.errors import ArtifactError
from winnow.speedups import attribution, baselines, best, fastest, figures, speedups

Row = dict[str, Any]


def row(candidate: str, runtime: str, precision: str, p50_ms: float, **other: Any) -> Row:
    values = {"batch": 1, "threads": 2, "layout": "file", "p95_ms": None, **other}
    base = {"candidate": candidate, "runtime": runtime, "precision": precision, "p50_ms": p50_ms}
    return {**base, **values, "images_per_s": values["batch"] / p50_ms * 1e3}


ROWS = [
    row("dense", "eager", "f32", 12.0, layout="contiguous"),
    row("dense", "eager", "f32", 11.0, layout="channels_last"),
    row("dense", "eager", "f32", 10.0, layout="channels_last", threads=1),
    row("dense", "compile", "bf16", 6.0),
    row("dense", "ort", "f32", 5.0),
    row("dense", "openvino", "f32", 4.5, threads=1),
    row("dense", "openvino", "bf16", 3.0, p95_ms=3.3),
    row("dense", "eager-cuda", "f32", 0.1),
    row("pruned", "ort", "f32", 2.5),
    row("pruned", "ort", "f32", 2.6, threads=1),
    row("pruned", "openvino", "f32", 2.8),
    row("pruned-int8", "ort", "int8", 1.0, threads=1, p95_ms=1.2),
    row("pruned-int8", "openvino", "int8", 1.5),
    row("pruned-int8", "ort", "int8", 40.0, batch=64),
    row("pruned-int8", "openvino-throughput", "int8", 64.0, batch=64),
    row("dense", "eager", "f32", 400.0, batch=64),
    row("dense", "ort", "f32", 200.0, batch=64),
]


def test_baselines_take_the_better_layout_and_number_of_threads() -> None:
    found = baselines(ROWS, 1)
    assert {kind: at["p50_ms"] for kind, at in found.items()} == {"eager": 10.0, "pytorch": 6.0, "float": 3.0}
    assert found["eager"]["layout"] == "channels_last"
    assert found["eager"]["threads"] == 1  # files are searched over threads too: a baseline must not be easier to beat
    turned = [at | {"p50_ms": 8.0} if at["layout"] == "contiguous" else at for at in ROWS]
    assert baselines(turned, 1)["eager"]["layout"] == "contiguous"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pruned-int8", {"eager": 10.0, "pytorch": 6.0, "float": 3.0}),
        ("pruned", {"eager": 4.0, "pytorch": 2.4, "float": 1.2}),
        ("dense", {"eager": 10 / 3, "pytorch": 2.0, "float": 1.0}),
        ("unknown", {}),
    ],
)
def test_speedups_are_ratios_of_medians(name: str, expected: dict[str, float]) -> None:
    assert speedups(ROWS, name, 1) == pytest.approx(expected)
    doubled = [at | {"p50_ms": at["p50_ms"] * 2} for at in ROWS]  # a machine half as fast changes nothing
    assert speedups(doubled, name, 1) == pytest.approx(expected)


def test_the_batch_is_kept_apart_and_the_gpu_out() -> None:
    assert speedups(ROWS, "pruned-int8", 64) == pytest.approx({"eager": 10.0, "pytorch": 10.0, "float": 5.0})
    assert best(ROWS, "dense", 1) == ROWS[6]
    assert best(ROWS, "pruned", 64) is None
    assert fastest(ROWS, lambda at: at["runtime"] == "eager-cuda") is None


@pytest.mark.parametrize(
    ("name", "ancestor", "steps"),
    [
        ("pruned-int8", "pruned", [10.0, 5.0, 2.5, 1.0]),
        ("pruned", "pruned", [10.0, 5.0, 2.5, 2.5]),
        ("dense", "dense", [10.0, 4.5, 4.5, 3.0]),
    ],
)
def test_factors_multiply_to_the_total(name: str, ancestor: str, steps: list[float]) -> None:
    found = attribution(ROWS, name, ancestor, 1)
    assert found is not None
    assert found["ms"] == steps
    assert math.prod(found[part] for part in ("runtime", "structure", "precision")) == pytest.approx(found["total"])
    assert found["total"] == pytest.approx(speedups(ROWS, name, 1)["eager"])
    own = best(ROWS, name, 1)
    assert own is not None
    assert (found["on"], found["threads"], found["ends_in"]) == (own["runtime"], own["threads"], own["precision"])


def test_no_attribution_where_a_row_is_missing() -> None:
    assert attribution(ROWS, "unknown", "dense", 1) is None
    assert attribution(ROWS, "pruned-int8", "pruned", 64) is None
    without = [at for at in ROWS if (at["candidate"], at["runtime"]) != ("dense", "ort")]
    assert attribution(without, "pruned-int8", "pruned", 1) is None


def test_without_dense_in_eager_there_is_no_figure() -> None:
    rows = [at for at in ROWS if at["runtime"] != "eager"]
    with pytest.raises(ArtifactError, match=r"dense could not be timed in PyTorch eager f32 at batch 1.*delete"):
        speedups(rows, "pruned", 1)
    with pytest.raises(ArtifactError, match="batch 7"):
        baselines(ROWS, 7)


def test_flat_figures() -> None:
    process = {"candidate": "pruned-int8", "runtime": "ort", "precision": "int8"}
    processes = [
        {**process, "peak_mb": 90.0, "load_ms": 8.0, "first_call_ms": 2.0},
        {**process, "precision": "bf16", "peak_mb": 1.0, "load_ms": 1.0, "first_call_ms": 1.0},
        {**process, "candidate": "dense", "peak_mb": 2.0, "load_ms": 2.0, "first_call_ms": 2.0},
    ]
    assert figures(ROWS, processes, "pruned-int8", 64) == pytest.approx(
        {
            "latency/ort_b1_p50_ms": 1.0,
            "latency/ort_b1_p95_ms": 1.2,
            "throughput/ort_b64_ips": 1600.0,
            "throughput/ov-streams_b64_ips": 1000.0,
            "memory/ort_peak_mb": 90.0,
            "start/ort_load_ms": 8.0,
            "start/ort_first_call_ms": 2.0,
            "latency/ov_b1_p50_ms": 1.5,
            "best/latency_ms": 1.0,
            "best/latency_threads": 1,
            "best/throughput_ips": 1600.0,
            "best/throughput_threads": 2,
            "speedup/eager_b1": 10.0,
            "speedup/pytorch_b1": 6.0,
            "speedup/float_b1": 3.0,
            "speedup/eager_b64": 10.0,
            "speedup/pytorch_b64": 10.0,
            "speedup/float_b64": 5.0,
        }
    )
    assert figures(ROWS, processes, "unknown", 64) == {}
