"""Speed-ups with intervals and their attribution, from the rows of winnow/benchmark/grid.py.

A speed-up is given against three baselines:
- `eager`: the dense network in PyTorch eager f32 (the better memory layout and number of threads): a common starting
  point;
- `pytorch`: dense in the fastest float PyTorch, including bf16 and torch.compile;
- `float`: dense as the fastest float of any precision and runtime, so the speed-up is that of compression alone.

Each has a 95 % interval from the rounds in which both were timed, at least as wide as the measurement error
(winnow/benchmark/measurement_error.py).

`attribute_speedup` splits the first speed-up into three factors whose product it is: runtime (dense eager f32 ->
dense f32 in the candidate's fastest runtime and threads), structure (-> the candidate's float ancestor there) and
precision (-> the candidate's own file). All times are medians of one benchmark on one machine, from rows that
were compared in the same rounds. `shortlist_cases` selects these rows; rows that were only screened are used for
nothing else. GPU rows belong to another device and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from winnow.config import ROOT
from winnow.deploy.runtime_properties import GPU_RUNTIMES, INT8_PRECISIONS, PYTORCH_RUNTIMES
from winnow.errors import ArtifactError
from winnow.evaluation.intervals import Ratio, paired_ratio
from winnow.records.benchmark import Attribution, Baselines, BenchmarkCase, BenchmarkRow, ProcessFootprint

RUNTIME_ABBREVIATIONS = {"ort": "ort", "openvino": "ov", "openvino-throughput": "ov-streams"}


def fastest_row(rows: list[BenchmarkRow], keep: Callable[[BenchmarkRow], bool]) -> BenchmarkRow | None:
    """Return the CPU row with the smallest p50 for which `keep` is true; screened rows only if all of them are."""
    candidates = [row for row in rows if row.runtime not in GPU_RUNTIMES and keep(row)]
    compared = [row for row in candidates if not row.screened]
    return min(compared or candidates, key=lambda row: row.p50_ms, default=None)


def best_row(rows: list[BenchmarkRow], name: str, batch: int) -> BenchmarkRow | None:
    """Return the row of this batch in which the candidate's deployable file is fastest; PyTorch rows do not count."""
    return fastest_row(rows, lambda row: (row.candidate, row.batch, row.layout) == (name, batch, "file"))


def best_float_row(rows: list[BenchmarkRow], batch: int) -> BenchmarkRow | None:
    """Return the row of dense as the fastest float of any precision and runtime."""
    return fastest_row(
        rows, lambda row: (row.candidate, row.batch) == (ROOT, batch) and row.precision not in INT8_PRECISIONS
    )


def baseline_rows(rows: list[BenchmarkRow], batch: int) -> Baselines:
    """Return the rows of dense that are the three baselines. Raises ArtifactError if dense was not timed."""
    dense = [row for row in rows if row.candidate == ROOT and row.batch == batch]
    eager = fastest_row(dense, lambda row: (row.runtime, row.precision) == ("eager", "f32"))
    pytorch = fastest_row(dense, lambda row: row.runtime in PYTORCH_RUNTIMES)
    best_float = best_float_row(rows, batch)
    if eager is None or pytorch is None or best_float is None:
        raise ArtifactError(
            f"benchmark: {ROOT} could not be timed in PyTorch eager f32 at batch {batch}: its weights and its "
            "model.onnx give different predictions; delete artifacts/candidates/dense and run winnow again"
        )
    return Baselines(eager=eager, pytorch=pytorch, float=best_float)


def speedups(rows: list[BenchmarkRow], name: str, batch: int, error: float = 0.0) -> dict[str, Ratio]:
    """Return {eager, pytorch, float}: speed-ups of the candidate's best row; empty if it was not timed.

    `error`: the measurement error of this batch, a fraction.
    """
    own = best_row(rows, name, batch)
    if own is None:
        return {}
    return {kind: speedup(row, own, error) for kind, row in baseline_rows(rows, batch)}


def speedup(reference: BenchmarkRow, own: BenchmarkRow, error: float = 0.0) -> Ratio:
    """Return the speed-up of `own` over `reference`, with the interval over their common rounds.

    The interval is unbounded for rows without `round_ms` or of different rounds; a row against itself is exactly 1.
    """
    value = reference.p50_ms / own.p50_ms
    if reference.case == own.case:
        return Ratio(1.0, 1.0, 1.0)
    reference_R, own_R = reference.round_ms, own.round_ms
    if len(reference_R) != len(own_R) or not own_R or reference.screened != own.screened:
        return Ratio(value, 0.0, math.inf)
    return paired_ratio(reference_R, own_R, value).widened(error)


def shortlist_cases(
    rows: list[BenchmarkRow], ancestors: Mapping[str, str], pairs: Sequence[tuple[str, str]], batch: int
) -> list[BenchmarkCase]:
    """Return the cases of this batch to compare, in the order of `rows`.

    These are each candidate's fastest case, the three baselines, the intermediate steps of the attribution, and both
    cases of each pair of identical graphs, for the measurement error. `ancestors`: candidate -> the float network that
    its file was made from.
    """
    selected: list[BenchmarkRow | None] = [row for _, row in baseline_rows(rows, batch)]
    for name, ancestor in ancestors.items():
        own = best_row(rows, name, batch)
        selected.append(own)
        if own is not None:
            selected += [_float_on(rows, network, own.runtime, batch) for network in (ROOT, ancestor)]
    for first, second in pairs:
        own = best_row(rows, first, batch)
        if own is not None:
            same_case = replace(own.case, candidate=second)
            selected.append(next((row for row in rows if row.case == same_case), None))
    cases = {row.case for row in selected if row is not None}
    return [row.case for row in rows if row.case in cases]


def merge_compared(screened: list[BenchmarkRow], compared: list[BenchmarkRow]) -> list[BenchmarkRow]:
    """Return the rows of all cases: compared rows where they exist, the others marked as screened."""
    compared_by_case = {row.case: row for row in compared}
    return [compared_by_case.get(row.case, row.model_copy(update={"screened": True})) for row in screened]


def _float_on(rows: list[BenchmarkRow], candidate: str, runtime: str, batch: int) -> BenchmarkRow | None:
    """Return the candidate's fastest f32 row in that runtime."""
    key = (candidate, runtime, "f32", batch)
    return fastest_row(rows, lambda row: (row.candidate, row.runtime, row.precision, row.batch) == key)


def attribute_speedup(rows: list[BenchmarkRow], name: str, ancestor: str, batch: int) -> Attribution | None:
    """Return the factors of the speed-up over eager f32; None if a row between the two is missing.

    `ancestor`: the float network that the candidate's file was made from; the candidate itself if it is float.
    """
    own = best_row(rows, name, batch)
    if own is None:
        return None
    start = baseline_rows(rows, batch).eager
    dense, parent = (_float_on(rows, candidate, own.runtime, batch) for candidate in (ROOT, ancestor))
    if dense is None or parent is None:
        return None
    step_ms = [row.p50_ms for row in (start, dense, parent, own)]
    return Attribution(
        batch=batch,
        on=own.runtime,
        threads=own.threads,
        ends_in=own.precision,
        ancestor=ancestor,
        ms=step_ms,
        runtime=step_ms[0] / step_ms[1],
        structure=step_ms[1] / step_ms[2],
        precision=step_ms[2] / step_ms[3],
        total=step_ms[0] / step_ms[3],
    )


def candidate_metrics(
    rows: list[BenchmarkRow],
    processes: list[ProcessFootprint],
    name: str,
    large: int,
    errors: Mapping[int, float] | None = None,
) -> dict[str, float]:
    """Return the metrics of one candidate, with the same names for all candidates.

    `errors`: batch -> measurement error, a fraction; none by default.
    """
    metrics: dict[str, float] = {}
    for runtime, short in RUNTIME_ABBREVIATIONS.items():
        single = _on(rows, name, runtime, 1)
        if single is not None:
            metrics[f"latency/{short}_b1_p50_ms"] = single.p50_ms
            if single.p95_ms is not None:
                metrics[f"latency/{short}_b1_p95_ms"] = single.p95_ms
        batched = _on(rows, name, runtime, large)
        if batched is not None:
            metrics[f"throughput/{short}_b{large}_ips"] = batched.images_per_s
        for process in processes:
            if (process.candidate, process.runtime) == (name, runtime) and "bf16" not in process.precision:
                metrics[f"memory/{short}_peak_mb"] = process.peak_mb
                metrics[f"start/{short}_load_ms"] = process.load_ms
                metrics[f"start/{short}_first_call_ms"] = process.first_call_ms
    latency, throughput = best_row(rows, name, 1), best_row(rows, name, large)
    if latency is not None:
        metrics["best/latency_ms"] = latency.p50_ms
        metrics["best/latency_threads"] = latency.threads
    if throughput is not None:
        metrics["best/throughput_ips"] = throughput.images_per_s
        metrics["best/throughput_threads"] = throughput.threads
    for batch in (1, large):
        for kind, ratio in speedups(rows, name, batch, (errors or {}).get(batch, 0.0)).items():
            metrics |= ratio_metrics(f"speedup/{kind}_b{batch}", ratio)
    return metrics


def ratio_metrics(key: str, ratio: Ratio) -> dict[str, float]:
    """Return {key, key_low, key_high}, without the ends if the interval is unbounded."""
    if not math.isfinite(ratio.high):
        return {key: ratio.value}
    return {key: ratio.value, f"{key}_low": ratio.low, f"{key}_high": ratio.high}


def read_ratio(metrics: Mapping[str, float], key: str) -> Ratio | None:
    """Return the ratio that `ratio_metrics` flattened; None if it is missing."""
    if key not in metrics:
        return None
    return Ratio(metrics[key], metrics.get(f"{key}_low", 0.0), metrics.get(f"{key}_high", math.inf))


def _on(rows: list[BenchmarkRow], name: str, runtime: str, batch: int) -> BenchmarkRow | None:
    """Return the candidate's fastest row in that runtime."""
    key = (name, runtime, batch)
    return fastest_row(rows, lambda row: (row.candidate, row.runtime, row.batch) == key)
