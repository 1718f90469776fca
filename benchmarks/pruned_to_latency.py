"""Pruned to a latency: with the multiple of channels that measuring chose, with multiples of 8, and with any number.

    python -m benchmarks.pruned_to_latency

The three arms get the same goal, a share of dense's own time of a call in OpenVINO int8 at batch 1, the same recovery
and the same dense; three seeds of dense. What differs is how channels are rounded. Odd counts are slow, so an arm that
allows them has to remove more for the same milliseconds. Times are measured anew at the end, interleaved, by the
benchmark, since the search for a cut picks lucky measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.chain import SATURATES, Chain, all_labels, configure, leave, markdown
from winnow.config import ROOT
from winnow.hardware import cores
from winnow.records import BenchmarkRecord, CandidateRecord
from winnow.records.candidate import PruneDetails

NAME = "pruned_to_latency"
SEEDS = (0, 1, 2)
GOAL = {"latency": {"share": 0.4, "runtime": "openvino", "precision": "int8", "batch": 1}}
RECOVERY: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 128,
    "optimiser": {"learning_rate": 0.05},
    "teacher_weight": 0.7,
    "augmentation": {"crop_scale_min": 0.6},
}
ARMS: dict[str, Any] = {"measured": "measured", "multiples-of-8": 8, "any-number": 1}
TREE: dict[str, Any] = {
    name: {"from": "dense", "method": "prune", "remove": GOAL, "round_to": rounding, "recovery": RECOVERY}
    for name, rounding in ARMS.items()
} | {f"{name}-int8": {"from": name, "method": "quantize", "overflow_safe": SATURATES} for name in (ROOT, *ARMS)}


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    told: dict[str, list[Any]] = {name: [] for name in ARMS}
    for seed in SEEDS:
        chain = Chain(
            f"{NAME}/{seed}", configure(all_labels("resnet8", seed=seed) | {"finetune.cross_validation": "never"}, TREE)
        )
        timed = BenchmarkRecord.read(chain.benchmark()).details.rows
        where = ("openvino", 1, cores())  # as the goal was measured
        ms = {
            row.candidate.removesuffix("-int8"): row.p50_ms
            for row in timed
            if row.precision == "int8" and (row.runtime, row.batch, row.threads) == where
        }
        dense = CandidateRecord.read(chain.candidates / "dense").metrics
        for name in ARMS:
            pruned, int8 = (CandidateRecord.read(chain.candidates / each) for each in (name, f"{name}-int8"))
            assert isinstance(pruned.details, PruneDetails)
            told[name].append(pruned.details.cuts[0].model_dump(include={"share", "round_to", "limit"}))
            found[name].append(
                {
                    "lost": (dense["quality/top1"] - int8.metrics["quality/top1"]) * 100,
                    "share": ms[name] / ms[ROOT] if {name, ROOT} <= ms.keys() else float("nan"),
                    "macs": pruned.details.macs_after / pruned.details.macs_before,
                }
            )
    rows = []
    for name in ARMS:
        figures = {key: np.array([each[key] for each in found[name]]) for key in ("lost", "share", "macs")}
        rows.append(
            {
                "arm": name,
                "multiples chosen": ", ".join(str(each["round_to"]) for each in told[name]),
                "of dense's time, int8, measured anew": ", ".join(f"{value:.0%}" for value in figures["share"]),
                "MACs left": ", ".join(f"{value:.0%}" for value in figures["macs"]),
                "points lost, int8": f"{figures['lost'].mean():.1f} ({', '.join(f'{v:.1f}' for v in figures['lost'])})",
            }
        )
    conditions = (
        f"resnet8 on all labels of the sample, three seeds of dense; goal: {GOAL['latency']['share']:.0%} of dense's "
        f"time of a call in OpenVINO int8, batch 1, all threads; recovery of {RECOVERY['epochs']} epochs. Points of "
        "top-1 below dense on validation."
    )
    leave(NAME, conditions, {"found": found, "cuts": told}, markdown(rows))


if __name__ == "__main__":
    main()
