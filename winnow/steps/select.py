"""Step 6: which candidate may serve. Gathers the figures that winnow.selection.decision judges, and keeps the reasons.

Drops, of top-1 and of macro F1, are paired on the labelled validation images, against `dense` or its control
`dense-kd`, whichever is better there: a child that was trained on must not win by having been trained longer. Their
intervals hold together for all candidates that compete (winnow/selection/decision.py). What the answers prove without
labels is counted on every validation image, and so is agreement, which is with `dense`. All are of what the file
answers in the runtime and precision where it is fastest, since that is what will serve: OpenVINO's bf16 is another
model than the float file in ONNX Runtime. Speed comes from the benchmark, and only if that ran on this machine: a gate
takes figures of one machine, and the candidates timed must be the very ones that lie here.

Nothing is trained, timed or promoted; the test split is not read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.measurement_error import largest_errors
from winnow.benchmark.speedups import ratio_figures, ratio_of
from winnow.benchmark.target_measurements import serving_speeds, target_digest
from winnow.config import ROOT, Config, in_order
from winnow.config.section import NOTHING
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.deploy.runtimes import INT8
from winnow.errors import ArtifactError
from winnow.evaluation.ablations import controls, stronger_baseline
from winnow.evaluation.accuracy_drop import DropReport, losses
from winnow.evaluation.metrics import agreement, load_logits, quality, right_answers, served_file
from winnow.records import (
    StepRecord,
    describe,
    publish,
    read_record,
    record_digest,
    this_machine,
    write_json,
    write_record,
)
from winnow.refit.deployed_folder import WINNER
from winnow.reporting.plots import Point, pareto
from winnow.selection.caveats import (
    ValidationImages,
    overflow_told,
    overflowing,
    remarks,
    silent_remarks,
    unchecked_remarks,
)
from winnow.selection.decision import SERVES, CandidateMetrics, Decision, batch_of_objective, competing, decide

log = logging.getLogger(__name__)
PLOT, FIGURES = "pareto.png", "metrics.json"
COMPARED = (
    *("quality/top1", "quality/macro_f1", "quality/ece", "quality/agreement"),
    *("size/mb", "size/zipped_mb", "size/parameters", "size/nonzero_parameters", "compute/macs"),
)
"""Figures for `dvc metrics diff`: those that a candidate's inputs decide, of its file in ONNX Runtime. Where it would
serve is decided by times, which differ from run to run."""

Row = dict[str, Any]


def select(config: Config, data: Path, candidates: Path, benchmark: Path, out: Path, root: Path) -> StepRecord:
    """Judge every candidate of the tree by `config.promotion` and leave the decision in `out`.

    `root`: the project's folder, in which `benchmark.target` is looked for.
    """
    policy = config.promotion
    images = load_images(data)
    names = (ROOT, *in_order(dict(config.candidates)))
    records = {name: read_record(candidates / name) for name in names}
    timed = read_record(benchmark)
    digests = {name: record_digest(candidates / name) for name in names}
    _check_benchmark(config, timed, benchmark, digests)
    speeds = serving_speeds(config, timed, records, root)
    target = {"target": digest} if (digest := target_digest(config, root)) else {}
    logits = {name: load_logits(candidates / name, images) for name in names}
    right = right_answers(logits, images)
    served = logits | _served(speeds, benchmark, names[1:], policy.objective, images)
    right_served = right_answers(served, images)
    reference = stronger_baseline(right)
    indices_V = images.indices(VALIDATION)
    labels_V, groups_V = images.labels_N[indices_V], images.groups_N[indices_V]
    dense_V = logits[ROOT].argmax(1).astype(np.int64)
    validation = ValidationImages(labels_V, dense_V, images.classes, groups_V)

    def lost_among(candidates: int) -> dict[str, DropReport]:
        known = (labels_V, candidates, groups_V, images.classes)
        return {name: losses(logits[reference], served[name], *known) for name in names}

    alone = lost_among(1)
    contenders = {
        name: CandidateMetrics(
            name=name,
            top1=float(right_served[name].mean()) if right else None,
            drop=alone[name].top1,
            macro_f1=alone[name].macro_f1,
            agreement=agreement(logits[ROOT], served[name]),
            size_mb=records[name].metrics["size/mb"],
            **_int8(speeds, timed, records[name], policy.objective),
            **_speed(speeds, name, config),
        )
        for name in names
    }
    competitors = max(1, competing(contenders[ROOT], [contenders[name] for name in names[1:]], policy.gates))
    lost = lost_among(competitors)
    contenders = {
        name: replace(contender, drop=lost[name].top1, macro_f1=lost[name].macro_f1)
        for name, contender in contenders.items()
    }
    batch = batch_of_objective(policy.objective, config.benchmark.large_batch)
    error = largest_errors(speeds["measurement_error"]).get(batch, 0.0)
    decision = decide(contenders[ROOT], [contenders[name] for name in names[1:]], policy, error)
    log.info("select: %s", decision.why)
    unsafe = overflowing(config, speeds["machine"]["flags"])
    with publish(out) as folder:
        (folder / PLOT).write_bytes(pareto([point(contenders[name], decision) for name in names]))
        write_json(folder / FIGURES, {name: compared(records[name].metrics) for name in names})
        write_json(folder / WINNER, {"winner": decision.winner})
        record = StepRecord(
            step="select",
            name="select",
            parameters=policy.model_dump(mode="json"),
            inputs={"data": record_digest(data), "benchmark": record_digest(benchmark), **digests, **target},
            metrics=_metrics(decision, contenders) | {"select/competitors": float(competitors)},
            details={
                "verdicts": [verdict.model_dump(mode="json") for verdict in decision.verdicts],
                "winner": decision.winner,
                "why": decision.why,
                "front": list(decision.front),
                "reference": reference,
                "competitors": competitors,
                "route": lost[ROOT].top1.route,
                "drops": {name: asdict(both.top1) for name, both in lost.items()},
                "macro_f1_drops": {name: asdict(both.macro_f1) for name, both in lost.items()},
                "agreement": {name: contender.agreement for name, contender in contenders.items()},
                "quality": _quality_as_served(served, contenders, images),
                "served": {name: _cell(speeds, name, policy.objective) for name in names[1:]},
                "speeds": speeds,
                "controls": controls(config, right, groups_V[labels_V >= 0]),
            },
            warnings=(
                *remarks(config, reference, lost[ROOT].top1, validation),
                *([overflow_told(unsafe)] if unsafe else []),
                *unchecked_remarks(decision.verdicts),
                *_not_answered(speeds, benchmark, names[1:], policy.objective),
                *silent_remarks(config, speeds),
            ),
            artifacts=describe(folder, PLOT, FIGURES, WINNER),
        )
        write_record(folder, record)
    return record


def _check_benchmark(config: Config, timed: StepRecord, benchmark: Path, digests: Mapping[str, str]) -> None:
    """Raise ArtifactError unless the times are of these candidates on this machine, or gates use another one's."""
    here, there = this_machine(), timed.machine
    if config.benchmark.target == NOTHING and (there is None or here.identity != there.identity):
        told = there.identity if there else "an unknown machine"
        raise ArtifactError(
            f"the times in {benchmark} were taken on {told}; this is {here.identity}. A gate takes figures of one "
            "machine only: run the benchmark here (dvc repro --force --single-item benchmark) or select over there"
        )
    if other := [name for name, digest in digests.items() if timed.inputs.get(name) != digest]:
        raise ArtifactError(f"{benchmark} has not timed the present {', '.join(other)}; run the benchmark again")


def _quality_as_served(
    served: Mapping[str, NDArray[np.float32]], contenders: Mapping[str, CandidateMetrics], images: ImageSet
) -> dict[str, dict[str, float]]:
    """Return the accuracy of each candidate in the runtime and precision that would serve it, as its card repeats it.

    Its own record holds that of its file in ONNX Runtime, and so does this where the machine that will serve is another
    one whose runtime has not answered here (`_not_answered`). Without a labelled image: agreement alone.
    """
    known_L = images.indices(VALIDATION, labelled=True)
    scored_V = images.labels_N[images.indices(VALIDATION)] >= 0
    labels_L, groups_L = images.labels_N[known_L], images.groups_N[known_L]
    found = {}
    for name, contender in contenders.items():
        figures, _ = quality(served[name][scored_V], labels_L, images.classes, groups_L)
        kept = {key: value for key, value in figures.items() if key != "quality/ece"}
        found[name] = {**kept, "quality/agreement": contender.agreement}
        if figures:
            found[name]["delta/top1"] = (figures["quality/top1"] - found[ROOT]["quality/top1"]) * 100
    return found


def _cell(speeds: Mapping[str, Any], name: str, objective: str) -> Row | None:
    """Where the candidate would serve: its fastest row, None where no runtime could be timed."""
    row: Row | None = speeds["best"][name][SERVES[objective]]
    return row


def _int8(speeds: Mapping[str, Any], timed: StepRecord, record: StepRecord, objective: str) -> dict[str, Any]:
    """Return {int8_share, int8_unchecked} of a candidate: what the runtime that would serve executes in int8, or why
    that was not read. A file that serves in float has neither.
    """
    row, cpu = _cell(speeds, record.name, objective), speeds["machine"]["cpu"]
    if (row["precision"] if row else record.details["precision"]) not in INT8:
        return {}
    if row is None:
        return {"int8_unchecked": f"on {cpu}: no runtime was timed that could serve it"}
    where = f"{row['runtime']} {row['precision']}"
    if speeds["is_target"]:
        return {"int8_unchecked": f"on {cpu}: check_host.py does not read which kernels {where} runs there"}
    wanted = (record.name, row["runtime"], row["precision"])
    for proof in timed.details.get("executed", []):
        if (proof["candidate"], proof["runtime"], proof["precision"]) == wanted:
            return {"int8_share": float(proof["int8_share"])}
    return {"int8_unchecked": f"on {cpu}: the benchmark did not read which kernels {where} runs"}


def _served(
    speeds: Mapping[str, Any], benchmark: Path, names: Sequence[str], objective: str, images: ImageSet
) -> dict[str, NDArray[np.float32]]:
    """Answers (V, C) of those that could be timed, where they would serve, as far as that was tried here."""
    rows = {name: _cell(speeds, name, objective) for name in names}
    found = {name: row for name, row in rows.items() if row is not None}
    if speeds["is_target"]:
        found = {name: row for name, row in found.items() if (benchmark / served_file(row)).is_file()}
    return {name: load_logits(benchmark, images, served_file(row)) for name, row in found.items()}


def _not_answered(speeds: Mapping[str, Any], benchmark: Path, names: Sequence[str], objective: str) -> list[str]:
    """Return a warning for each candidate whose drop and agreement are not of the answers that will serve."""
    rows = {name: _cell(speeds, name, objective) for name in names}
    return [
        f"top-1, drop, macro F1 and agreement of {name} are of its file in ONNX Runtime: it will serve in "
        f"{row['runtime']} {row['precision']} on {speeds['machine']['cpu']}, and the benchmark of this machine has no "
        "answers in that"
        for name, row in rows.items()
        if row is not None and speeds["is_target"] and not (benchmark / served_file(row)).is_file()
    ]


def _speed(speeds: Mapping[str, Any], name: str, config: Config) -> dict[str, Any]:
    """Latency, throughput and speed-up over dense as the best float; None where no runtime could be timed."""
    figures: dict[str, float] = speeds["candidates"][name]
    row = _cell(speeds, name, config.promotion.objective)
    batch = batch_of_objective(config.promotion.objective, config.benchmark.large_batch)
    return {
        "latency_ms": figures.get("best/latency_ms"),
        "throughput_ips": figures.get("best/throughput_ips"),
        "speedup": ratio_of(figures, f"speedup/float_b{batch}"),
        "round_ms": tuple(row.get("round_ms", ())) if row else (),
    }


def compared(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Figures of one candidate, nested as DVC shows them: pruned.quality.top1."""
    nested: dict[str, dict[str, float]] = {}
    for key in COMPARED:
        if key in metrics:
            group, _, name = key.partition("/")
            nested.setdefault(group, {})[name] = metrics[key]
    return nested


def point(contender: CandidateMetrics, decision: Decision) -> Point:
    """How the candidate is drawn: top-1 with its interval, or agreement where no image has a label."""
    accuracy = contender.agreement if contender.top1 is None else contender.top1
    return Point(
        name=contender.name,
        latency_ms=contender.latency_ms,
        accuracy=accuracy,
        size_mb=contender.size_mb,
        measures_agreement=contender.top1 is None,
        on_front=contender.name in decision.front,
        highlighted=contender.name == decision.winner,
    )


def _metrics(decision: Decision, contenders: Mapping[str, CandidateMetrics]) -> dict[str, float]:
    """Counts, and the winner's figures where there is one."""
    metrics = {
        "select/candidates": float(len(decision.verdicts)),
        "select/passed": float(sum(verdict.passed for verdict in decision.verdicts)),
        "select/on_front": float(len(decision.front)),
    }
    if decision.winner is None:
        return metrics
    winner, dense = contenders[decision.winner], contenders[ROOT]
    metrics["winner/agreement"] = winner.agreement
    metrics["winner/size_ratio"] = winner.size_mb / dense.size_mb
    if winner.speedup is not None:
        metrics |= ratio_figures("winner/speedup", winner.speedup)
    if winner.drop.labelled is not None:
        metrics |= {f"winner/drop_{end}": getattr(winner.drop.labelled, end) for end in ("points", "low", "high")}
    return metrics
