"""How much faster, against what, how surely, and where it came from: from the rows of winnow/benchmark/grid.py.

A speed-up is three numbers, because each answers another question:
- `eager`: against the dense network in PyTorch eager f32 (the better memory layout and number of threads): what users
  have now;
- `pytorch`: against dense in the fastest float PyTorch, bf16 and torch.compile included: what they could have;
- `float`: against dense as the best float of any precision and runtime: what compression itself bought.

Each has a 95 % interval, from the rounds in which both were timed and at least as wide as the measurement error
(winnow/benchmark/measurement_error.py).

`attribution` splits the first of them into factors whose product it is: runtime (dense eager f32 -> dense f32 on the
candidate's best runtime, with its best threads), structure (-> the candidate's float ancestor there) and precision (->
the candidate's own file). All figures are medians of one benchmark on one machine, of the rows that were compared in
the same rounds: `shortlist` says which these are, and rows that were only screened decide nothing else. GPU rows are
another machine and stay out of all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from winnow.config import ROOT
from winnow.deploy.runtimes import INT8, ON_GPU, PYTORCH, BenchmarkCase, cell_of
from winnow.errors import ArtifactError
from winnow.evaluation.intervals import Ratio, paired_ratio

Row = dict[str, Any]
CELL = ("runtime", "precision", "layout", "batch", "threads")
SHORT = {"ort": "ort", "openvino": "ov", "openvino-throughput": "ov-streams"}


def fastest(rows: list[Row], keep: Callable[[Row], bool]) -> Row | None:
    """Return the CPU row with the smallest p50 among those that `keep` wants; of screened rows only where all are."""
    kept = [row for row in rows if row["runtime"] not in ON_GPU and keep(row)]
    compared = [row for row in kept if "screened" not in row]
    return min(compared or kept, key=lambda row: float(row["p50_ms"]), default=None)


def best(rows: list[Row], name: str, batch: int) -> Row | None:
    """The row of this batch in which the candidate's deployable file is fastest; PyTorch rows are no deployment."""
    return fastest(rows, lambda row: (row["candidate"], row["batch"], row["layout"]) == (name, batch, "file"))


def best_float(rows: list[Row], batch: int) -> Row | None:
    """dense as the best float of any precision and runtime."""
    return fastest(rows, lambda row: (row["candidate"], row["batch"]) == (ROOT, batch) and row["precision"] not in INT8)


def baselines(rows: list[Row], batch: int) -> dict[str, Row]:
    """The rows of dense that the three speed-ups divide by. Raises ArtifactError when dense was not timed."""
    dense = [row for row in rows if row["candidate"] == ROOT and row["batch"] == batch]
    found = {
        "eager": fastest(dense, lambda row: (row["runtime"], row["precision"]) == ("eager", "f32")),
        "pytorch": fastest(dense, lambda row: row["runtime"] in PYTORCH),
        "float": best_float(rows, batch),
    }
    timed = {kind: row for kind, row in found.items() if row is not None}
    if len(timed) < len(found):
        raise ArtifactError(
            f"benchmark: {ROOT} could not be timed in PyTorch eager f32 at batch {batch}: its weights and its "
            "model.onnx give different answers; delete artifacts/candidates/dense and run winnow again"
        )
    return timed


def speedups(rows: list[Row], name: str, batch: int, error: float = 0.0) -> dict[str, Ratio]:
    """{eager, pytorch, float}: how many times faster the candidate's best row is; empty when it was not timed.

    `error`: the measurement error of this batch, a share.
    """
    own = best(rows, name, batch)
    if own is None:
        return {}
    return {kind: speedup(row, own, error) for kind, row in baselines(rows, batch).items()}


def speedup(reference: Row, own: Row, error: float = 0.0) -> Ratio:
    """Return how many times `own` is as fast as `reference`, with the interval over the rounds that both were in.

    Rows without `round_ms`, or of different rounds, give an interval without ends; a row against itself is 1 exactly.
    """
    value = reference["p50_ms"] / own["p50_ms"]
    if all(reference[key] == own[key] for key in ("candidate", *CELL)):
        return Ratio(1.0, 1.0, 1.0)
    theirs, mine = reference.get("round_ms", ()), own.get("round_ms", ())
    if len(theirs) != len(mine) or not mine or ("screened" in reference) != ("screened" in own):
        return Ratio(value, 0.0, math.inf)
    return paired_ratio(theirs, mine, value).widened(error)


def shortlist(
    rows: list[Row], ancestors: Mapping[str, str], pairs: Sequence[tuple[str, str]], batch: int
) -> list[BenchmarkCase]:
    """Return the cells of this batch that count, in the order of `rows`.

    Each candidate's fastest, the three baselines, what the attribution goes through, and of each pair of identical
    graphs both where the first is fastest, so that their ratio tells the measurement error. `ancestors`: candidate ->
    the float network that its file was made from.
    """
    wanted: list[Row | None] = list(baselines(rows, batch).values())
    for name, ancestor in ancestors.items():
        own = best(rows, name, batch)
        wanted.append(own)
        if own is not None:
            wanted += [_float_on(rows, other, own["runtime"], batch) for other in (ROOT, ancestor)]
    for first, second in pairs:
        own = best(rows, first, batch)
        if own is not None:
            same = {**{key: own[key] for key in CELL}, "candidate": second}
            wanted.append(next((row for row in rows if all(row[key] == value for key, value in same.items())), None))
    cells = {cell_of(row) for row in wanted if row is not None}
    return [cell for cell in map(cell_of, rows) if cell in cells]


def replaced(screened: list[Row], compared: list[Row]) -> list[Row]:
    """Return the rows of all cells: those of the comparison where there are any, the others marked as screened."""
    again = {cell_of(row): row for row in compared}
    return [again.get(cell_of(row), {**row, "screened": True}) for row in screened]


def _float_on(rows: list[Row], candidate: str, runtime: str, batch: int) -> Row | None:
    """The candidate's fastest f32 row on that runtime."""
    wanted = (candidate, runtime, "f32", batch)
    return fastest(rows, lambda row: (row["candidate"], row["runtime"], row["precision"], row["batch"]) == wanted)


def attribution(rows: list[Row], name: str, ancestor: str, batch: int) -> Row | None:
    """Factors of the speed-up over eager f32; None when a row between the two is missing.

    `ancestor`: the float network that the candidate's file was made from; itself for a float candidate.
    """
    own = best(rows, name, batch)
    if own is None:
        return None
    start = baselines(rows, batch)["eager"]
    dense, parent = (_float_on(rows, candidate, own["runtime"], batch) for candidate in (ROOT, ancestor))
    if dense is None or parent is None:
        return None
    steps = [float(row["p50_ms"]) for row in (start, dense, parent, own)]
    return {
        "batch": batch,
        "on": own["runtime"],
        "threads": own["threads"],
        "ends_in": own["precision"],
        "ancestor": ancestor,
        "ms": steps,
        "runtime": steps[0] / steps[1],
        "structure": steps[1] / steps[2],
        "precision": steps[2] / steps[3],
        "total": steps[0] / steps[3],
    }


def figures(
    rows: list[Row], processes: list[Row], name: str, large: int, errors: Mapping[int, float] | None = None
) -> dict[str, float]:
    """Return the flat metrics of one candidate, under the same names for all.

    `errors`: batch -> measurement error, a share; none if None.
    """
    found: dict[str, float] = {}
    for runtime, short in SHORT.items():
        one = _on(rows, name, runtime, 1)
        if one is not None:
            found[f"latency/{short}_b1_p50_ms"] = one["p50_ms"]
            if one["p95_ms"] is not None:
                found[f"latency/{short}_b1_p95_ms"] = one["p95_ms"]
        many = _on(rows, name, runtime, large)
        if many is not None:
            found[f"throughput/{short}_b{large}_ips"] = many["images_per_s"]
        for process in processes:
            if (process["candidate"], process["runtime"]) == (name, runtime) and "bf16" not in process["precision"]:
                found[f"memory/{short}_peak_mb"] = process["peak_mb"]
                found[f"start/{short}_load_ms"] = process["load_ms"]
                found[f"start/{short}_first_call_ms"] = process["first_call_ms"]
    latency, throughput = best(rows, name, 1), best(rows, name, large)
    if latency is not None:
        found["best/latency_ms"] = latency["p50_ms"]
        found["best/latency_threads"] = latency["threads"]
    if throughput is not None:
        found["best/throughput_ips"] = throughput["images_per_s"]
        found["best/throughput_threads"] = throughput["threads"]
    for batch in (1, large):
        for kind, ratio in speedups(rows, name, batch, (errors or {}).get(batch, 0.0)).items():
            found |= ratio_figures(f"speedup/{kind}_b{batch}", ratio)
    return found


def ratio_figures(key: str, ratio: Ratio) -> dict[str, float]:
    """Return {key, key_low, key_high}; the ends are left out where they are not known."""
    if not math.isfinite(ratio.high):
        return {key: ratio.value}
    return {key: ratio.value, f"{key}_low": ratio.low, f"{key}_high": ratio.high}


def ratio_of(figures: Mapping[str, float], key: str) -> Ratio | None:
    """Return the ratio that `ratio_figures` flattened; None where it is not there."""
    if key not in figures:
        return None
    return Ratio(figures[key], figures.get(f"{key}_low", 0.0), figures.get(f"{key}_high", math.inf))


def _on(rows: list[Row], name: str, runtime: str, batch: int) -> Row | None:
    wanted = (name, runtime, batch)
    return fastest(rows, lambda row: (row["candidate"], row["runtime"], row["batch"]) == wanted)
