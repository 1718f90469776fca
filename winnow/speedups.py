"""How much faster, against what, and where it came from: sums over the rows that winnow/benchmarking.py measured.

A speed-up is three numbers, because each answers another question:
- `eager`: against the dense network in PyTorch eager f32 (the better memory layout and number of threads): what users
  have now;
- `pytorch`: against dense on the best PyTorch of any kind, bf16 and torch.compile included: what they could have;
- `float`: against dense as the best float of any precision and runtime: what compression itself bought.

`attribution` splits the first of them into factors whose product it is: runtime (dense eager f32 -> dense f32 on the
candidate's best runtime, with its best threads), structure (-> the candidate's float ancestor there) and precision (->
the candidate's own file). All figures are medians of one benchmark on one machine. GPU rows are another machine and
stay out of all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from winnow.config import ROOT
from winnow.errors import ArtifactError
from winnow.runtimes import ON_GPU, PYTORCH

Row = dict[str, Any]
SHORT = {"ort": "ort", "openvino": "ov", "openvino-throughput": "ov-streams"}


def fastest(rows: list[Row], keep: Callable[[Row], bool]) -> Row | None:
    """The CPU row with the smallest p50 among those that `keep` wants."""
    kept = [row for row in rows if row["runtime"] not in ON_GPU and keep(row)]
    return min(kept, key=lambda row: float(row["p50_ms"])) if kept else None


def best(rows: list[Row], name: str, batch: int) -> Row | None:
    """The row of this batch in which the candidate's deployable file is fastest; PyTorch rows are no deployment."""
    return fastest(rows, lambda row: (row["candidate"], row["batch"], row["layout"]) == (name, batch, "file"))


def best_float(rows: list[Row], batch: int) -> Row | None:
    """dense as the best float of any precision and runtime."""
    return fastest(rows, lambda row: (row["candidate"], row["batch"]) == (ROOT, batch) and row["precision"] != "int8")


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


def speedups(rows: list[Row], name: str, batch: int) -> dict[str, float]:
    """{eager, pytorch, float}: how many times faster the candidate's best row is; empty when it was not timed."""
    own = best(rows, name, batch)
    if own is None:
        return {}
    return {kind: row["p50_ms"] / own["p50_ms"] for kind, row in baselines(rows, batch).items()}


def attribution(rows: list[Row], name: str, ancestor: str, batch: int) -> Row | None:
    """Factors of the speed-up over eager f32; None when a row between the two is missing.

    `ancestor`: the float network that the candidate's file was made from; itself for a float candidate.
    """
    own = best(rows, name, batch)
    if own is None:
        return None

    def f32(candidate: str) -> Row | None:
        wanted = (candidate, own["runtime"], "f32", batch)
        return fastest(rows, lambda row: (row["candidate"], row["runtime"], row["precision"], row["batch"]) == wanted)

    start, dense, parent = baselines(rows, batch)["eager"], f32(ROOT), f32(ancestor)
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


def figures(rows: list[Row], processes: list[Row], name: str, large: int) -> dict[str, float]:
    """The flat metrics of one candidate, under the same names for all."""
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
            if (process["candidate"], process["runtime"]) == (name, runtime) and process["precision"] != "bf16":
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
        found |= {f"speedup/{kind}_b{batch}": value for kind, value in speedups(rows, name, batch).items()}
    return found


def _on(rows: list[Row], name: str, runtime: str, batch: int) -> Row | None:
    wanted = (name, runtime, batch)
    return fastest(rows, lambda row: (row["candidate"], row["runtime"], row["batch"]) == wanted)
