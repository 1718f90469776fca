"""Prune to a latency with the measured multiple of channels, with multiples of 8, and with any number of channels.

    python -m benchmarks.pruned_to_latency

The three arms have the same goal (a share of dense's latency in OpenVINO int8 at batch 1), the same recovery and the
same dense network; three seeds of dense. Only the rounding of channels differs. Odd numbers of channels are slow, so an
arm that allows them has to remove more for the same latency. The benchmark times all files again at the end,
interleaved, since the pruning search is biased towards favourable measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.chain import INT8_SATURATES, Chain, all_labels_overrides, configure, markdown_table, write_results
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
} | {f"{name}-int8": {"from": name, "method": "quantize", "overflow_safe": INT8_SATURATES} for name in (ROOT, *ARMS)}


def main() -> None:
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    cuts: dict[str, list[Any]] = {name: [] for name in ARMS}
    for seed in SEEDS:
        overrides = all_labels_overrides("resnet8", seed=seed) | {"finetune.cross_validation": "never"}
        chain = Chain(f"{NAME}/{seed}", configure(overrides, TREE))
        timed_rows = BenchmarkRecord.read(chain.benchmark()).details.rows
        goal_case = ("openvino", 1, cores())
        latency_ms = {
            row.candidate.removesuffix("-int8"): row.p50_ms
            for row in timed_rows
            if row.precision == "int8" and (row.runtime, row.batch, row.threads) == goal_case
        }
        dense = CandidateRecord.read(chain.candidates / "dense").metrics
        for name in ARMS:
            pruned = CandidateRecord.read(chain.candidates / name).details
            int8 = CandidateRecord.read(chain.candidates / f"{name}-int8").metrics
            assert isinstance(pruned, PruneDetails)
            cuts[name].append(pruned.cuts[0].model_dump(include={"share", "round_to", "limit"}))
            is_timed = {name, ROOT} <= latency_ms.keys()
            figures[name].append(
                {
                    "lost": (dense["quality/top1"] - int8["quality/top1"]) * 100,
                    "share": latency_ms[name] / latency_ms[ROOT] if is_timed else float("nan"),
                    "macs": pruned.macs_after / pruned.macs_before,
                }
            )
    rows = []
    for name in ARMS:
        by_seed = {key: np.array([figure[key] for figure in figures[name]]) for key in ("lost", "share", "macs")}
        lost = ", ".join(f"{value:.1f}" for value in by_seed["lost"])
        rows.append(
            {
                "arm": name,
                "multiples chosen": ", ".join(str(cut["round_to"]) for cut in cuts[name]),
                "share of dense's latency, int8, timed again": ", ".join(f"{value:.0%}" for value in by_seed["share"]),
                "MACs left": ", ".join(f"{value:.0%}" for value in by_seed["macs"]),
                "points lost, int8": f"{by_seed['lost'].mean():.1f} ({lost})",
            }
        )
    conditions = (
        f"resnet8 on all labels of the sample, three seeds of dense; goal: {GOAL['latency']['share']:.0%} of dense's "
        f"latency in OpenVINO int8, batch 1, all threads; recovery of {RECOVERY['epochs']} epochs. Points of top-1 "
        "below dense on validation."
    )
    write_results(NAME, conditions, {"found": figures, "cuts": cuts}, markdown_table(rows))


if __name__ == "__main__":
    main()
