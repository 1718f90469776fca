"""Step 3: fine-tune on the labels in the budget. Writes `dense`, the root of the candidates, and what pretraining
gained.

`dense` is the pretrained arm of the first seed: that of finetune.weights where a file is given, that from scratch where
there is neither pretraining nor known weights. It is fixed before anything is measured. The other seeds and the arm
from scratch show how much of its accuracy came from pretraining. Where `finetune.unlabelled` names a method, the
networks of that arm then train on images without labels; dense is the result only where its mean top-1 over the label
seeds is higher.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from winnow.config import ROOT, Config, Propagation
from winnow.config.section import NO_FILE
from winnow.data.dataset import TRAIN, ImageSet, load_images
from winnow.data.splits import draw_label_budget
from winnow.deploy.candidate_card import finish_candidate
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.teacher_embeddings import has_embeddings
from winnow.evaluation.intervals import paired_gain
from winnow.evaluation.metrics import VALIDATION_LOGITS, quality_metrics
from winnow.models.backbones import ARCHITECTURE_FILE, WEIGHTS_FILE, load_architecture, save_model
from winnow.records import (
    CARD,
    FinetuneDetails,
    FinetuneRecord,
    describe_files,
    publish,
    record_digest,
    sha256_of,
    write_record,
)
from winnow.records.finetune import (
    ArmComparison,
    CrossValidationSummary,
    LinearProbe,
    PretrainingGain,
    TriedTraining,
    UnlabelledComparison,
    UnlabelledRow,
)
from winnow.training.checkpoint import Checkpoint
from winnow.training.finetuning import (
    CrossValidation,
    FinetunedArm,
    cross_validate,
    initial_model,
    linear_probe,
    needs_cross_validation,
    train_arms,
    validation_top1,
)
from winnow.training.loop import joined_curves
from winnow.training.starting_weights import SCRATCH, starting_weights
from winnow.training.stored_pseudo_labels import PSEUDO_LABELS_FILE, are_labels_few, write_pseudo_labels
from winnow.training.unlabelled_images import UnlabelledTrainer, unlabelled_training

log = logging.getLogger(__name__)


def finetune(
    config: Config, data: Path, pretrained: Path, out: Path, scratch: Path, embedded: Path | None = None
) -> FinetuneRecord:
    """Train all arms and write the candidate folder of `dense` to `out`.

    `embedded`: the folder of embed, whose embeddings label propagation uses; None: there is no teacher.
    """
    settings = config.finetune
    images = load_images(data)
    architecture = load_architecture(pretrained)
    starts = starting_weights(config, pretrained, architecture)
    arms, main = starts.arms, starts.main
    inputs = {"data": record_digest(data), "pretrain": record_digest(pretrained)}
    if settings.weights != NO_FILE:
        inputs["weights"] = sha256_of(Path(settings.weights))
    chosen, tried = train_arms(config, images, architecture, arms, scratch)
    dense = next(training for training in chosen if training.arm == main and training.seed == settings.seeds[0])
    probe = linear_probe(config, images, initial_model(architecture, arms[main], settings.seeds[0]))
    arm_details, arm_metrics = _compare(chosen, tried, main, probe)
    if has_embeddings(embedded) and isinstance(settings.unlabelled, Propagation):
        inputs["embed"] = record_digest(embedded)
    train_on = unlabelled_training(config, images, embedded)
    unlabelled = pseudo_labels_NC = None
    if train_on is not None:
        main_arm = [training for training in chosen if training.arm == main]
        continued, unlabelled, learned_NC = _train_on_unlabelled(config, images, main_arm, train_on, scratch)
        arm_metrics |= _unlabelled_metrics(unlabelled)
        if unlabelled.kept:
            dense, pseudo_labels_NC = continued, learned_NC
            taught = load_architecture(embedded).known_weights if "embed" in inputs and embedded else ()
            architecture = architecture.with_known_weights(*taught)
    cross_validation: CrossValidationSummary | None = None
    cross_validation_metrics: dict[str, float] = {}
    if needs_cross_validation(config, images):
        trainer = train_on if unlabelled is not None and unlabelled.kept else None
        crossed = cross_validate(config, images, architecture, arms[main], dense, scratch, trainer)
        cross_validation, cross_validation_metrics = _cross_validation_figures(images, crossed)
    with publish(out) as folder:
        save_model(folder, dense.model, architecture)
        export_onnx(dense.model, architecture, folder / MODEL)
        budget = draw_label_budget(images, config.data.label_budget, settings.seeds[0])
        files = [MODEL, CARD, VALIDATION_LOGITS, WEIGHTS_FILE, ARCHITECTURE_FILE]
        if pseudo_labels_NC is not None and are_labels_few(len(budget), len(images.indices(TRAIN))):
            write_pseudo_labels(folder, pseudo_labels_NC, images)
            files.append(PSEUDO_LABELS_FILE)
        metrics, details = finish_candidate(
            folder, name=ROOT, method="finetune", lineage=[ROOT], images=images, budget=budget, dense=None
        )
        trained = FinetuneDetails(
            **dict(details), arms=arm_details, cross_validation=cross_validation, curves=dense.curves
        )
        record = FinetuneRecord(
            step="finetune",
            name=ROOT,
            parameters=settings.model_dump(mode="json") | {"weights": _weights_name(settings.weights)},
            inputs=inputs,
            metrics={**metrics, **arm_metrics, **cross_validation_metrics},
            details=trained if unlabelled is None else trained.model_copy(update={"unlabelled": unlabelled}),
            artifacts=describe_files(folder, *files),
        )
        write_record(folder, record)
    return record


def _train_on_unlabelled(
    config: Config, images: ImageSet, main_arm: list[FinetunedArm], train_on: UnlabelledTrainer, scratch: Path
) -> tuple[FinetunedArm, UnlabelledComparison, NDArray[np.float32] | None]:
    """Train a copy of each network of the arm on; return the first of them, the comparison, and the first's
    pseudo-labels (UnlabelledResult.pseudo_labels_NC).
    """
    method = config.finetune.unlabelled.method
    continued, rows = [], []
    pseudo_labels_NC: NDArray[np.float32] | None = None
    for training in main_arm:
        log.info("unlabelled images, %s: seed %d", method, training.seed)
        model = copy.deepcopy(training.model)
        budget = draw_label_budget(images, config.data.label_budget, training.seed)
        result = train_on(model, budget, Checkpoint(scratch, f"unlabelled-seed{training.seed}"), seed=training.seed)
        top1 = validation_top1(model, images)
        curves = joined_curves(training.curves, result.curves)
        continued.append(dataclasses.replace(training, model=model, top1=top1, curves=curves))
        if training is main_arm[0]:
            pseudo_labels_NC = result.pseudo_labels_NC
        row = UnlabelledRow(
            seed=training.seed,
            steps=result.steps,
            top1=top1,
            precision=result.precision,
            coverage=result.coverage,
        )
        rows.append(row)
    mean, low, high = paired_gain([row.top1 for row in rows], [training.top1 for training in main_arm])
    log.info("%s against labels alone: %+.1f points (label seeds: %d)", method, mean, len(rows))
    gain = PretrainingGain(arm="unlabelled", mean=mean, low=low, high=high, pairs=len(rows))
    comparison = UnlabelledComparison(method=method, kept=mean > 0, trainings=rows, gain=gain)
    return continued[0], comparison, pseudo_labels_NC


def _unlabelled_metrics(unlabelled: UnlabelledComparison) -> dict[str, float]:
    rows = unlabelled.trainings
    metrics = {
        "unlabelled/top1": fmean(row.top1 for row in rows),
        "unlabelled/gain_points": unlabelled.gain.mean,
        "unlabelled/coverage": fmean(row.coverage for row in rows),
    }
    precisions = [row.precision for row in rows if row.precision is not None]
    return metrics | ({"unlabelled/precision": fmean(precisions)} if precisions else {})


def _cross_validation_figures(
    images: ImageSet, crossed: CrossValidation
) -> tuple[CrossValidationSummary, dict[str, float]]:
    """Return details and metrics of the cross-validation of dense's recipe."""
    figures, details = quality_metrics(
        crossed.logits_LC, images.labels_N[crossed.labelled_L], images.classes, images.groups_N[crossed.labelled_L]
    )
    metrics = {key.replace("quality/", "cross_validation/"): value for key, value in figures.items()}
    top1, low, high = (figures[f"quality/{key}"] * 100 for key in ("top1", "top1_low", "top1_high"))
    log.info("cross-validated top-1 %.1f %% (%.1f to %.1f, %d labels)", top1, low, high, len(crossed.labelled_L))
    summary = CrossValidationSummary(labels=len(crossed.labelled_L), folds=crossed.folds, per_class=details.per_class)
    return summary, metrics


def _weights_name(weights: str) -> str:
    """Return the weights as the record names them: without a path outside the project; their digest is among the
    inputs.
    """
    return Path(weights).name if Path(weights).is_absolute() else weights


def _compare(
    chosen: list[FinetunedArm], tried: list[FinetunedArm], main: str, probe: LinearProbe
) -> tuple[ArmComparison, dict[str, float]]:
    """Return details and metrics of the arms side by side, paired by seed."""
    by_arm = {arm: [t for t in chosen if t.arm == arm] for arm in dict.fromkeys(t.arm for t in chosen)}
    main_top1 = [t.top1 for t in by_arm[main]]
    scratch = [t.top1 for t in by_arm[SCRATCH]]
    gain: PretrainingGain | None = None
    metrics = {
        "pretraining/scratch_top1": sum(scratch) / len(scratch),
        "pretraining/arm_top1": sum(main_top1) / len(main_top1),
        "pretraining/linear_probe_top1": probe.top1,
    }
    if main != SCRATCH:
        mean, low, high = paired_gain(main_top1, scratch)
        log.info("%s against scratch: %+.1f points (label seeds: %d)", main, mean, len(scratch))
        gain = PretrainingGain(arm=main, mean=mean, low=low, high=high, pairs=len(scratch))
        metrics["pretraining/gain_points"] = mean
    comparison = ArmComparison(
        **{arm: [t.row() for t in trainings] for arm, trainings in by_arm.items()},
        linear_probe=probe,
        tried=[TriedTraining(arm=t.arm, **dict(t.row())) for t in tried],
        gain=gain,
    )
    return comparison, metrics
