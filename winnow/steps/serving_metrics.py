"""The figures of each candidate in the case that would serve it: its fastest runtime and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.speedups import read_ratio
from winnow.config import ROOT, Config
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.deploy.runtime_properties import INT8_PRECISIONS
from winnow.evaluation.metrics import benchmark_logits_file, load_logits, quality_metrics
from winnow.records import BenchmarkRecord, CandidateRecord
from winnow.records.benchmark import BenchmarkRow
from winnow.records.selection import ServingSpeeds
from winnow.selection.decision import SERVING_METRIC, batch_of_objective
from winnow.selection.gates import CandidateMetrics


def serving_row(speeds: ServingSpeeds, name: str, objective: str) -> BenchmarkRow | None:
    """Return the candidate's fastest row, by which it would serve; None where no runtime could be timed."""
    return speeds.best[name].of(SERVING_METRIC[objective])


def served_logits(
    speeds: ServingSpeeds, benchmark: Path, names: Sequence[str], objective: str, images: ImageSet
) -> dict[str, NDArray[np.float32]]:
    """Return the logits (V, C) of candidates in the case that would serve them, as far as it was run here."""
    rows = {name: serving_row(speeds, name, objective) for name in names}
    serving_rows = {name: row for name, row in rows.items() if row is not None}
    if speeds.is_target:
        serving_rows = {
            name: row for name, row in serving_rows.items() if (benchmark / benchmark_logits_file(row)).is_file()
        }
    return {name: load_logits(benchmark, images, benchmark_logits_file(row)) for name, row in serving_rows.items()}


def quality_in_serving_case(
    served: Mapping[str, NDArray[np.float32]], candidate_metrics: Mapping[str, CandidateMetrics], images: ImageSet
) -> dict[str, dict[str, float]]:
    """Return the accuracy of each candidate in the runtime and precision that would serve it, which its card repeats.

    A candidate's own record holds that of its file in ONNX Runtime, and so does this where the serving machine is
    another one whose runtime was not run here (`unmeasured_warnings`). Without a labelled image: agreement alone.
    """
    labelled_L = images.indices(VALIDATION, labelled=True)
    scored_V = images.labels_N[images.indices(VALIDATION)] >= 0
    labels_L, groups_L = images.labels_N[labelled_L], images.groups_N[labelled_L]
    quality_of = {}
    for name, metrics in candidate_metrics.items():
        figures, _ = quality_metrics(served[name][scored_V], labels_L, images.classes, groups_L)
        figures_kept = {key: value for key, value in figures.items() if key != "quality/ece"}
        quality_of[name] = {**figures_kept, "quality/agreement": metrics.agreement}
        if figures:
            quality_of[name]["delta/top1"] = (figures["quality/top1"] - quality_of[ROOT]["quality/top1"]) * 100
    return quality_of


def int8_figures(
    speeds: ServingSpeeds, timed: BenchmarkRecord, record: CandidateRecord, objective: str
) -> dict[str, Any]:
    """Return {int8_share, int8_unchecked} of a candidate: the share that the serving runtime executes in int8, or why
    it was not measured. A file that serves in float has neither.
    """
    row, cpu = serving_row(speeds, record.name, objective), speeds.machine.cpu
    if (row.precision if row else record.details.precision) not in INT8_PRECISIONS:
        return {}
    if row is None:
        return {"int8_unchecked": f"on {cpu}: no runtime was timed that could serve it"}
    serving_case = f"{row.runtime} {row.precision}"
    if speeds.is_target:
        return {"int8_unchecked": f"on {cpu}: check_host.py does not read which kernels {serving_case} runs there"}
    for coverage in timed.details.executed:
        if (coverage.candidate, coverage.runtime, coverage.precision) == (record.name, row.runtime, row.precision):
            return {"int8_share": coverage.int8_share}
    return {"int8_unchecked": f"on {cpu}: the benchmark did not read which kernels {serving_case} runs"}


def speed_figures(speeds: ServingSpeeds, name: str, config: Config) -> dict[str, Any]:
    """Return latency, throughput and speed-up over dense as the best float; None where no runtime could be timed."""
    figures = speeds.candidates[name]
    row = serving_row(speeds, name, config.promotion.objective)
    batch = batch_of_objective(config.promotion.objective, config.benchmark.large_batch)
    return {
        "latency_ms": figures.get("best/latency_ms"),
        "throughput_ips": figures.get("best/throughput_ips"),
        "speedup": read_ratio(figures, f"speedup/float_b{batch}"),
        "round_ms": row.round_ms if row else (),
    }


def unmeasured_warnings(speeds: ServingSpeeds, benchmark: Path, names: Sequence[str], objective: str) -> list[str]:
    """Return a warning for each candidate whose drop and agreement are not of the case that will serve."""
    rows = {name: serving_row(speeds, name, objective) for name in names}
    return [
        f"top-1, drop, macro F1 and agreement of {name} are of its file in ONNX Runtime: it will serve in "
        f"{row.runtime} {row.precision} on {speeds.machine.cpu}, and the benchmark of this machine has no "
        "predictions in that"
        for name, row in rows.items()
        if row is not None and speeds.is_target and not (benchmark / benchmark_logits_file(row)).is_file()
    ]
