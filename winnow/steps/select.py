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
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.benchmark.measurement_error import largest_errors
from winnow.benchmark.speedups import ratio_metrics
from winnow.benchmark.target_measurements import serving_speeds, target_digest
from winnow.config import ROOT, Config, topological_order
from winnow.config.section import NO_FILE
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.errors import ArtifactError
from winnow.evaluation.ablations import control_gains, stronger_baseline
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
    this_machine,
    write_json,
    write_record,
)
from winnow.records.selection import ServingSpeeds
from winnow.refit.deployed_folder import WINNER, write_winner
from winnow.selection.decision import Decision, batch_of_objective, count_competing, decide
from winnow.selection.gates import CandidateMetrics
from winnow.selection.selection_warnings import (
    ValidationImages,
    describe_overflow,
    overflowing_candidates,
    selection_warnings,
    unchecked_gate_warnings,
    unknown_flag_warnings,
)
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


@dataclass(frozen=True)
class _Run:
    """The inputs of `select`."""

    config: Config
    images: ImageSet
    names: tuple[str, ...]
    """The candidates, dense first."""
    records: dict[str, CandidateRecord]
    timed: BenchmarkRecord
    speeds: ServingSpeeds
    logits: dict[str, NDArray[np.float32]]
    """(V, C) of each file in ONNX Runtime."""
    served: dict[str, NDArray[np.float32]]
    """(V, C) of each file in the case that would serve, as far as it was run."""

    @cached_property
    def correct(self) -> dict[str, NDArray[np.bool_]]:
        """Return which labelled images each file classifies correctly in ONNX Runtime; empty without labels."""
        return correct_predictions(self.logits, self.images)

    @cached_property
    def reference(self) -> str:
        """Return the stronger of dense and dense-kd."""
        return stronger_baseline(self.correct)

    @cached_property
    def validation(self) -> ValidationImages:
        """Return the labels, dense's predictions and the groups of the validation images."""
        indices_V = self.images.indices(VALIDATION)
        dense_V = self.logits[ROOT].argmax(1).astype(np.int64)
        groups_V = self.images.groups_N[indices_V]
        return ValidationImages(self.images.labels_N[indices_V], dense_V, self.images.classes, groups_V)


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
    _check_benchmark(config, timed, benchmark, digests)
    speeds = serving_speeds(config, timed, records, root)
    logits = {name: load_logits(candidates / name, images) for name in names}
    served = logits | served_logits(speeds, benchmark, names[1:], policy.objective, images)
    run = _Run(config, images, names, records, timed, speeds, logits, served)
    candidate_metrics, losses_of, competitors = _measure(run)
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
            details=_details(run, decision, candidate_metrics, losses_of, competitors),
            warnings=_warnings(run, decision, losses_of, benchmark),
            artifacts=describe_files(folder, METRICS_FILE, WINNER),
        )
        write_record(folder, record)
    return record


def _measure(run: _Run) -> tuple[dict[str, CandidateMetrics], dict[str, DropReport], int]:
    """Return the candidates' metrics, their losses, and how many candidates compete.

    The losses' intervals depend on the number that competes, and that on metrics other than the losses.
    """
    labels_V, groups_V, policy = run.validation.labels_V, run.validation.groups_V, run.config.promotion
    correct_served = correct_predictions(run.served, run.images)

    def losses_among(candidates: int) -> dict[str, DropReport]:
        shared = (labels_V, candidates, groups_V, run.images.classes)
        return {name: measure_drops(run.logits[run.reference], run.served[name], *shared) for name in run.names}

    single_losses = losses_among(1)
    candidate_metrics = {
        name: CandidateMetrics(
            name=name,
            top1=float(correct_served[name].mean()) if run.correct else None,
            drop=single_losses[name].top1,
            macro_f1=single_losses[name].macro_f1,
            agreement=agreement(run.logits[ROOT], run.served[name]),
            size_mb=run.records[name].metrics["size/mb"],
            **int8_figures(run.speeds, run.timed, run.records[name], policy.objective),
            **speed_figures(run.speeds, name, run.config),
        )
        for name in run.names
    }
    others = [candidate_metrics[name] for name in run.names[1:]]
    competitors = max(1, count_competing(candidate_metrics[ROOT], others, policy.gates))
    losses_of = losses_among(competitors)
    candidate_metrics = {
        name: replace(metrics, drop=losses_of[name].top1, macro_f1=losses_of[name].macro_f1)
        for name, metrics in candidate_metrics.items()
    }
    return candidate_metrics, losses_of, competitors


def _details(
    run: _Run,
    decision: Decision,
    candidate_metrics: Mapping[str, CandidateMetrics],
    losses_of: Mapping[str, DropReport],
    competitors: int,
) -> SelectionDetails:
    validation, objective = run.validation, run.config.promotion.objective
    assert validation.groups_V is not None
    return SelectionDetails(
        verdicts=list(decision.verdicts),
        winner=decision.winner,
        why=decision.why,
        front=list(decision.front),
        reference=run.reference,
        competitors=competitors,
        route=losses_of[ROOT].top1.route,
        drops={name: report.top1 for name, report in losses_of.items()},
        macro_f1_drops={name: report.macro_f1 for name, report in losses_of.items()},
        agreement={name: metrics.agreement for name, metrics in candidate_metrics.items()},
        quality=quality_in_serving_case(run.served, candidate_metrics, run.images),
        served={name: serving_row(run.speeds, name, objective) for name in run.names[1:]},
        speeds=run.speeds,
        controls=control_gains(run.config, run.correct, validation.groups_V[validation.labels_V >= 0]),
    )


def _warnings(run: _Run, decision: Decision, losses_of: Mapping[str, DropReport], benchmark: Path) -> tuple[str, ...]:
    unsafe = overflowing_candidates(run.config, run.speeds.machine.flags)
    return (
        *selection_warnings(run.config, run.reference, losses_of[ROOT].top1, run.validation),
        *([describe_overflow(unsafe)] if unsafe else []),
        *unchecked_gate_warnings(decision.verdicts),
        *unmeasured_warnings(run.speeds, benchmark, run.names[1:], run.config.promotion.objective),
        *unknown_flag_warnings(run.config, run.speeds),
    )


def _check_benchmark(config: Config, timed: BenchmarkRecord, benchmark: Path, digests: Mapping[str, str]) -> None:
    """Raise ArtifactError unless the times are of these candidates, and of this machine where gates use its times."""
    machine, timed_machine = this_machine(), timed.machine
    if config.benchmark.target == NO_FILE and (timed_machine is None or machine.identity != timed_machine.identity):
        timed_on = timed_machine.identity if timed_machine else "an unknown machine"
        raise ArtifactError(
            f"the times in {benchmark} were measured on {timed_on}; this is {machine.identity}. A gate uses figures of "
            "one machine only: run the benchmark here (dvc repro --force --single-item benchmark) or select there"
        )
    if untimed := [name for name, digest in digests.items() if timed.inputs.get(name) != digest]:
        raise ArtifactError(f"{benchmark} has not timed the present {', '.join(untimed)}; run the benchmark again")


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
