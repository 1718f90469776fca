"""Step 6: decide which candidate may serve. Gathers the figures that winnow.selection.decision judges, and the reasons.

Drops, of top-1 and of macro F1, are paired on the labelled validation images, against `dense` or its control
`dense-kd`, whichever is better there: a candidate must not win by having been trained longer. Their intervals hold
simultaneously for all candidates that compete (winnow/selection/decision.py). Changed predictions are counted on every
validation image, labelled or not, and so is agreement, which is with `dense`. All are of the file's predictions in the
runtime and precision where it is fastest, since that is what will serve: OpenVINO's bf16 is another model than the
float file in ONNX Runtime. Speed comes from the benchmark, and only if that ran on this machine, with these very files:
a gate uses figures of one machine.

Nothing is trained, timed or promoted; the test split is not read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from winnow.benchmark.measurement_error import largest_errors
from winnow.benchmark.speedups import ratio_metrics
from winnow.benchmark.target_measurements import serving_speeds, target_digest
from winnow.config import ROOT, Config, topological_order
from winnow.data.dataset import load_images
from winnow.evaluation.ablations import control_gains
from winnow.evaluation.accuracy_drop import DropReport, measure_drops
from winnow.evaluation.metrics import agreement, correct_predictions, load_logits
from winnow.records import (
    BenchmarkRecord,
    CandidateRecord,
    SelectionDetails,
    SelectionRecord,
    describe_files,
    publish,
    record_digest,
    write_json,
    write_record,
)
from winnow.refit.deployed_folder import WINNER, write_winner
from winnow.selection.decision import Decision, batch_of_objective, count_competing, decide
from winnow.selection.gates import CandidateMetrics
from winnow.selection.selection_warnings import (
    describe_overflow,
    overflowing_candidates,
    selection_warnings,
    unchecked_gate_warnings,
    unknown_flag_warnings,
)
from winnow.steps.selection_inputs import SelectionInputs, check_benchmark
from winnow.steps.serving_metrics import (
    int8_figures,
    quality_in_serving_case,
    served_logits,
    serving_row,
    speed_figures,
    unmeasured_warnings,
)

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.json"
DIFF_METRICS = (
    *("quality/top1", "quality/macro_f1", "quality/ece", "quality/agreement"),
    *("size/mb", "size/zipped_mb", "size/parameters", "size/nonzero_parameters", "compute/macs"),
)
"""Figures for `dvc metrics diff`: those that follow from a candidate's inputs, for its file in ONNX Runtime. The
serving runtime depends on times, which differ from run to run.
"""


def select(config: Config, data: Path, candidates: Path, benchmark: Path, out: Path, root: Path) -> SelectionRecord:
    """Judge every candidate by `config.promotion` and write the decision to `out`.

    `root`: the project's folder, in which `benchmark.target` is searched.
    """
    policy = config.promotion
    images = load_images(data)
    names = (ROOT, *topological_order(dict(config.candidates)))
    records = {name: CandidateRecord.read(candidates / name) for name in names}
    timed = BenchmarkRecord.read(benchmark)
    digests = {name: record_digest(candidates / name) for name in names}
    check_benchmark(config, timed, benchmark, digests)
    speeds = serving_speeds(config, timed, records, root)
    logits = {name: load_logits(candidates / name, images) for name in names}
    served = logits | served_logits(speeds, benchmark, names[1:], policy.objective, images)
    inputs = SelectionInputs(config, images, names, records, timed, speeds, logits, served)
    candidate_metrics, losses_of, competitors = _measure(inputs)
    batch = batch_of_objective(policy.objective, config.benchmark.large_batch)
    error = largest_errors(speeds.measurement_error).get(batch, 0.0)
    decision = decide(candidate_metrics[ROOT], [candidate_metrics[name] for name in names[1:]], policy, error)
    log.info("select: %s", decision.why)
    target = {"target": digest} if (digest := target_digest(config, root)) else {}
    with publish(out) as folder:
        write_json(folder / METRICS_FILE, {name: nested_metrics(records[name].metrics) for name in names})
        write_winner(folder, decision.winner)
        record = SelectionRecord(
            step="select",
            name="select",
            parameters=policy.model_dump(mode="json"),
            inputs={"data": record_digest(data), "benchmark": record_digest(benchmark), **digests, **target},
            metrics=_metrics(decision, candidate_metrics) | {"select/competitors": float(competitors)},
            details=_details(inputs, decision, candidate_metrics, losses_of, competitors),
            warnings=_warnings(inputs, decision, losses_of, benchmark),
            artifacts=describe_files(folder, METRICS_FILE, WINNER),
        )
        write_record(folder, record)
    return record


def _measure(inputs: SelectionInputs) -> tuple[dict[str, CandidateMetrics], dict[str, DropReport], int]:
    """Return the candidates' metrics, their losses, and how many candidates compete.

    The losses' intervals depend on the number that competes, and that on metrics other than the losses.
    """
    labels_V, groups_V, policy = inputs.validation.labels_V, inputs.validation.groups_V, inputs.config.promotion
    correct_served = correct_predictions(inputs.served, inputs.images)

    def losses_among(candidates: int) -> dict[str, DropReport]:
        shared = (labels_V, candidates, groups_V, inputs.images.classes)
        return {
            name: measure_drops(inputs.logits[inputs.reference], inputs.served[name], *shared) for name in inputs.names
        }

    single_losses = losses_among(1)
    candidate_metrics = {
        name: CandidateMetrics(
            name=name,
            top1=float(correct_served[name].mean()) if inputs.correct else None,
            drop=single_losses[name].top1,
            macro_f1=single_losses[name].macro_f1,
            agreement=agreement(inputs.logits[ROOT], inputs.served[name]),
            size_mb=inputs.records[name].metrics["size/mb"],
            **int8_figures(inputs.speeds, inputs.timed, inputs.records[name], policy.objective),
            **speed_figures(inputs.speeds, name, inputs.config),
        )
        for name in inputs.names
    }
    others = [candidate_metrics[name] for name in inputs.names[1:]]
    competitors = max(1, count_competing(candidate_metrics[ROOT], others, policy.gates))
    losses_of = losses_among(competitors)
    candidate_metrics = {
        name: replace(metrics, drop=losses_of[name].top1, macro_f1=losses_of[name].macro_f1)
        for name, metrics in candidate_metrics.items()
    }
    return candidate_metrics, losses_of, competitors


def _details(
    inputs: SelectionInputs,
    decision: Decision,
    candidate_metrics: Mapping[str, CandidateMetrics],
    losses_of: Mapping[str, DropReport],
    competitors: int,
) -> SelectionDetails:
    validation, objective = inputs.validation, inputs.config.promotion.objective
    assert validation.groups_V is not None
    return SelectionDetails(
        verdicts=list(decision.verdicts),
        winner=decision.winner,
        why=decision.why,
        front=list(decision.front),
        reference=inputs.reference,
        competitors=competitors,
        route=losses_of[ROOT].top1.route,
        drops={name: report.top1 for name, report in losses_of.items()},
        macro_f1_drops={name: report.macro_f1 for name, report in losses_of.items()},
        agreement={name: metrics.agreement for name, metrics in candidate_metrics.items()},
        quality=quality_in_serving_case(inputs.served, candidate_metrics, inputs.images),
        served={name: serving_row(inputs.speeds, name, objective) for name in inputs.names[1:]},
        speeds=inputs.speeds,
        controls=control_gains(inputs.config, inputs.correct, validation.groups_V[validation.labels_V >= 0]),
    )


def _warnings(
    inputs: SelectionInputs, decision: Decision, losses_of: Mapping[str, DropReport], benchmark: Path
) -> tuple[str, ...]:
    unsafe = overflowing_candidates(inputs.config, inputs.speeds.machine.flags)
    return (
        *selection_warnings(inputs.config, inputs.reference, losses_of[ROOT].top1, inputs.validation),
        *([describe_overflow(unsafe)] if unsafe else []),
        *unchecked_gate_warnings(decision.verdicts),
        *unmeasured_warnings(inputs.speeds, benchmark, inputs.names[1:], inputs.config.promotion.objective),
        *unknown_flag_warnings(inputs.config, inputs.speeds),
    )


def nested_metrics(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the figures of one candidate, nested as DVC shows them: pruned.quality.top1."""
    nested: dict[str, dict[str, float]] = {}
    for key in DIFF_METRICS:
        if key in metrics:
            group, _, name = key.partition("/")
            nested.setdefault(group, {})[name] = metrics[key]
    return nested


def _metrics(decision: Decision, candidate_metrics: Mapping[str, CandidateMetrics]) -> dict[str, float]:
    """Return the counts, and the winner's figures where there is one."""
    metrics = {
        "select/candidates": float(len(decision.verdicts)),
        "select/passed": float(sum(verdict.passed for verdict in decision.verdicts)),
        "select/on_front": float(len(decision.front)),
    }
    if decision.winner is None:
        return metrics
    winner, dense = candidate_metrics[decision.winner], candidate_metrics[ROOT]
    metrics["winner/agreement"] = winner.agreement
    metrics["winner/size_ratio"] = winner.size_mb / dense.size_mb
    if winner.speedup is not None:
        metrics |= ratio_metrics("winner/speedup", winner.speedup)
    if winner.drop.labelled is not None:
        metrics |= {f"winner/drop_{end}": getattr(winner.drop.labelled, end) for end in ("points", "low", "high")}
    return metrics
