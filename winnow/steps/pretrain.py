"""Step 2: pretrain a backbone on all training images, without labels.

It writes weights.safetensors (the backbone without head), architecture.json and the curves, and start.safetensors where
training began with known weights. kNN over the label budget
is for monitoring alone; validation images are only monitored, test images never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from winnow.config import Candidate, Config, Distill, DistillEmbeddings, Pretraining, TrainedPretraining
from winnow.config.weights import NO_WEIGHTS
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.data.splits import draw_label_budget, visible_labels
from winnow.deploy.teacher_embeddings import TeacherTargets, load_targets
from winnow.errors import ConfigError, DataError
from winnow.models.backbones import ARCHITECTURE_FILE, START_FILE, WEIGHTS_FILE, Architecture, load_architecture
from winnow.models.classifier_head import backbone_weights
from winnow.models.image_size_check import check_image_size
from winnow.models.known_weights import KnownWeights, weights_details
from winnow.models.weights_lookup import find_weights
from winnow.pretraining.backbone_training import pretrain_backbone
from winnow.pretraining.monitoring import MIN_SPREAD, KnnBank
from winnow.records import (
    CurveRow,
    KnownWeightsDetails,
    PretrainDetails,
    PretrainRecord,
    describe_files,
    publish,
    record_digest,
    write_json,
    write_record,
)
from winnow.training.checkpoint import Checkpoint

CURVES = "curves.json"


@dataclass(frozen=True)
class PretrainingStart:
    """The weights, network and targets that a pretraining begins with."""

    architecture: Architecture
    weights: dict[str, torch.Tensor] | None
    """Known weights of the backbone, without head; None: random weights."""
    known: KnownWeightsDetails | None
    """The description of those weights."""
    targets: TeacherTargets | None
    """The teacher's embeddings, for the method distill."""


def pretrain(
    config: Config,
    data: Path,
    out: Path,
    scratch: Path,
    embedded: Path | None = None,
    weights_cache: Path | None = None,
) -> PretrainRecord:
    """Train the backbone of config.pretrain on all training images of `data`; checkpoints go to `scratch`.

    `embedded`: the folder of embed, for the method distill. `weights_cache`: folder of downloaded weights; None:
    `scratch`. Raises DataError for fewer than two validation images, whose spread shows a collapse; ConfigError for a
    backbone or a student that cannot take the images; ConfigError and ArtifactError for start weights that cannot be
    used.
    """
    settings, images = config.pretrain, load_images(data)
    check_students(config.candidates, max(1, len(images.classes)), images.image_size)
    inputs = {"data": record_digest(data)}
    start = prepare_start(settings, images, embedded, weights_cache or scratch)
    if start.targets is not None and embedded is not None:
        inputs["embed"] = record_digest(embedded)
    is_trained = isinstance(settings, TrainedPretraining)
    bank = _monitor_bank(config, images) if is_trained else None
    checkpoint = Checkpoint(scratch, "pretrain")
    state, curves = pretrain_backbone(
        settings, images, start.architecture, bank, checkpoint, start=start.weights, targets=start.targets
    )
    details = PretrainDetails(curves=curves, start=start.known) if start.known else PretrainDetails(curves=curves)
    with publish(out) as folder:
        save_file(state, folder / WEIGHTS_FILE)
        write_json(folder / ARCHITECTURE_FILE, start.architecture.model_dump(mode="json"))
        write_json(folder / CURVES, curves)
        files = [WEIGHTS_FILE, ARCHITECTURE_FILE, CURVES]
        if start.weights is not None and is_trained:
            save_file(start.weights, folder / START_FILE)
            files.append(START_FILE)
        record = PretrainRecord(
            step="pretrain",
            name="pretrain",
            parameters=settings.model_dump(mode="json"),
            inputs=inputs,
            metrics=_metrics(curves),
            details=details,
            warnings=_collapse_warnings(settings, curves) if isinstance(settings, TrainedPretraining) else (),
            artifacts=describe_files(folder, *files),
        )
        write_record(folder, record)
    return record


def check_students(candidates: Mapping[str, Candidate], classes: int, image_size: int) -> None:
    """Raise ConfigError for a student that cannot take images of `image_size` pixels, before anything is trained."""
    for name, candidate in candidates.items():
        if isinstance(candidate, Distill) and candidate.student != "same":
            student = Architecture(
                backbone=candidate.student, num_classes=classes, image_size=image_size, width=candidate.width
            )
            check_image_size(student, f"candidates.{name}.student")


def prepare_start(
    settings: Pretraining, images: ImageSet, embedded: Path | None, weights_cache: Path
) -> PretrainingStart:
    """Return architecture, weights and targets of a pretraining; `embedded`: the folder of embed, for method distill.

    Raises ConfigError for a backbone that cannot take the images; ConfigError and ArtifactError for weights or
    embeddings that cannot be used.
    """
    weights, architecture = find_start(settings, max(1, len(images.classes)), images.image_size, weights_cache)
    check_image_size(architecture, "pretrain.backbone")
    start = backbone_weights(weights.load(architecture)) if weights else None
    known = weights_details(weights, architecture) if weights else None
    architecture = architecture.with_known_weights(known)
    targets = None
    if isinstance(settings, DistillEmbeddings):
        if embedded is None:
            raise ConfigError("pretrain: method distill needs a teacher")
        targets = load_targets(embedded, images)
        architecture = architecture.with_known_weights(*load_architecture(embedded).known_weights)
    return PretrainingStart(architecture, start, known, targets)


def find_start(
    settings: Pretraining, classes: int, image_size: int, weights_cache: Path
) -> tuple[KnownWeights | None, Architecture]:
    """Return the start weights, None for random ones, and the network's architecture.

    Raises ConfigError and ArtifactError for weights that cannot be used.
    """
    if settings.start == NO_WEIGHTS:
        return None, Architecture(backbone=settings.backbone, num_classes=classes, image_size=image_size)
    weights = find_weights(settings.start, settings.backbone, weights_cache)
    if not settings.non_commercial:
        weights.check_licence("pretrain.non_commercial")
    size = None if settings.input_size == "auto" else settings.input_size
    return weights, weights.architecture(classes, image_size, size)


def _monitor_bank(config: Config, images: ImageSet) -> KnnBank:
    queries = images.indices(VALIDATION)
    if len(queries) < 2:
        raise DataError(
            f"the validation split holds {len(queries)} images, too few to monitor pretraining; add images, or raise "
            "data.validation_fraction"
        )
    budget = draw_label_budget(images, config.data.label_budget, config.finetune.seeds[0])
    labels = np.asarray(visible_labels(images, budget))
    return KnnBank(images.images_NHWC, labels, budget, queries)


def _metrics(curves: list[CurveRow]) -> dict[str, float]:
    """Return the last value of every curve; the last epoch is the result, not the best one."""
    if not curves:
        return {}
    return {f"pretrain/{name}": value for name, value in curves[-1].items() if name != "epoch"}


def _collapse_warnings(settings: TrainedPretraining, curves: list[CurveRow]) -> tuple[str, ...]:
    final = curves[-1]["spread"] if curves else 1.0
    if final >= MIN_SPREAD:
        return ()
    message = (
        f"the embeddings have collapsed: their spread is {final:.3f}, below {MIN_SPREAD}; the backbone maps all images "
        f"to nearly the same vector. Lower pretrain.optimiser.learning_rate (now {settings.optimiser.learning_rate}), "
        "strengthen pretrain.augmentation, or use another pretrain.method"
    )
    return (message,)
