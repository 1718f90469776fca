"""Step 3: the label budget at work. Leaves `dense`, the root of the tree of candidates, and what pretraining bought.

`dense` is the pretrained arm of the first seed (that of finetune.weights where a file is given, that from scratch
where nothing was pretrained): fixed before anything is measured. The other seeds and the from-scratch arm say how much
of its accuracy came from pretraining.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from winnow.config import ROOT, Config
from winnow.config.section import NOTHING
from winnow.data.dataset import ImageSet, load_images
from winnow.data.splits import label_budget
from winnow.deploy.candidate_card import finish
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.evaluation.intervals import paired_gain
from winnow.evaluation.metrics import quality
from winnow.models.backbones import ARCHITECTURE, WEIGHTS, load_architecture, save_model
from winnow.records import StepRecord, describe, publish, record_digest, sha256_of, write_record
from winnow.training.finetuning import (
    CrossValidation,
    Trained,
    cross_validate,
    linear_probe,
    start,
    train_arms,
    wants_cross_validation,
)
from winnow.training.starting_weights import SCRATCH, starting_weights

log = logging.getLogger(__name__)


def finetune(config: Config, data: Path, pretrained: Path, out: Path, scratch: Path) -> StepRecord:
    """Train all arms and leave the candidate folder of `dense` in `out`."""
    settings = config.finetune
    images = load_images(data)
    architecture = load_architecture(pretrained)
    found = starting_weights(config, pretrained, architecture)
    arms, main = found.arms, found.main
    inputs = {"data": record_digest(data), "pretrain": record_digest(pretrained)}
    if settings.weights != NOTHING:
        inputs["weights"] = sha256_of(Path(settings.weights))
    chosen, tried = train_arms(config, images, architecture, arms, scratch)
    dense = next(training for training in chosen if training.arm == main and training.seed == settings.seeds[0])
    probe = linear_probe(config, images, start(architecture, arms[main], settings.seeds[0]))
    arm_details, arm_metrics = _compare(chosen, tried, main, probe)
    crossed: dict[str, Any] | None = None
    crossed_metrics: dict[str, float] = {}
    if wants_cross_validation(config, images):
        answers = cross_validate(config, images, architecture, arms[main], dense, scratch)
        crossed, crossed_metrics = _crossed(images, answers)
    with publish(out) as folder:
        save_model(folder, dense.model, architecture)
        export_onnx(dense.model, architecture, folder / MODEL)
        budget = label_budget(images, config.data.label_budget, settings.seeds[0])
        metrics, details = finish(
            folder, name=ROOT, method="finetune", lineage=[ROOT], images=images, budget=budget, dense=None
        )
        record = StepRecord(
            step="finetune",
            name=ROOT,
            parameters=settings.model_dump(mode="json") | {"weights": _named(settings.weights)},
            inputs=inputs,
            metrics={**metrics, **arm_metrics, **crossed_metrics},
            details={**details, "arms": arm_details, "cross_validation": crossed, "curves": dense.curves},
            artifacts=describe(folder, MODEL, "card.json", "validation_logits.npy", WEIGHTS, ARCHITECTURE),
        )
        write_record(folder, record)
    return record


def _crossed(images: ImageSet, found: CrossValidation) -> tuple[dict[str, Any], dict[str, float]]:
    """What cross-validation says of dense's recipe."""
    told, details = quality(
        found.logits_LC, images.labels_N[found.known_L], images.classes, images.groups_N[found.known_L]
    )
    metrics = {key.replace("quality/", "cross_validation/"): value for key, value in told.items()}
    top1, low, high = (told[f"quality/{key}"] * 100 for key in ("top1", "top1_low", "top1_high"))
    log.info("cross-validated top-1 %.1f %% (%.1f to %.1f, %d labels)", top1, low, high, len(found.known_L))
    return {"labels": len(found.known_L), "folds": found.folds, "per_class": details["per_class"]}, metrics


def _named(weights: str) -> str:
    """A record holds no path outside the project; the digest among the inputs says which file it was."""
    return Path(weights).name if Path(weights).is_absolute() else weights


def _compare(
    chosen: list[Trained], tried: list[Trained], main: str, probe: dict[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Arms side by side, paired by seed."""
    by_arm = {arm: [t for t in chosen if t.arm == arm] for arm in dict.fromkeys(t.arm for t in chosen)}
    main_top1 = [t.top1 for t in by_arm[main]]
    scratch = [t.top1 for t in by_arm[SCRATCH]]
    details: dict[str, Any] = {arm: [t.row() for t in trainings] for arm, trainings in by_arm.items()}
    details["linear_probe"] = probe
    details["tried"] = [{"arm": t.arm, **t.row()} for t in tried]
    details["gain"] = None
    metrics = {
        "pretraining/scratch_top1": sum(scratch) / len(scratch),
        "pretraining/arm_top1": sum(main_top1) / len(main_top1),
        "pretraining/linear_probe_top1": probe["top1"],
    }
    if main != SCRATCH:
        mean, low, high = paired_gain(main_top1, scratch)
        log.info("%s against scratch: %+.1f points (label seeds: %d)", main, mean, len(scratch))
        details["gain"] = {"arm": main, "mean": mean, "low": low, "high": high, "pairs": len(scratch)}
        metrics["pretraining/gain_points"] = mean
    return details, metrics
