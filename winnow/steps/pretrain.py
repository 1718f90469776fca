"""Step 2: pretrain a backbone on all training images, without labels.

It writes weights.safetensors (the backbone without head), architecture.json and the curves. kNN over the label budget
is for monitoring alone; validation images are only monitored, test images never read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from winnow.config import Config, NoPretraining, RotNet, SimCLR
from winnow.data.dataset import VALIDATION, ImageSet, load_images
from winnow.data.splits import draw_label_budget, visible_labels
from winnow.errors import DataError
from winnow.models.backbones import ARCHITECTURE_FILE, WEIGHTS_FILE, Architecture
from winnow.pretraining.backbone_training import pretrain_backbone
from winnow.pretraining.monitoring import MIN_SPREAD, KnnBank
from winnow.records import (
    CurveRow,
    PretrainDetails,
    PretrainRecord,
    describe_files,
    publish,
    record_digest,
    write_json,
    write_record,
)
from winnow.training.loop import Checkpoint

CURVES = "curves.json"


def pretrain(config: Config, data: Path, out: Path, scratch: Path) -> PretrainRecord:
    """Train the backbone of config.pretrain on all training images of `data`; checkpoints go to `scratch`.

    Raises DataError for fewer than two validation images, whose spread shows a collapse.
    """
    settings = config.pretrain
    images, inputs = load_images(data), {"data": record_digest(data)}
    architecture = Architecture(
        backbone=settings.backbone, num_classes=len(images.classes), image_size=images.image_size
    )
    bank = None if isinstance(settings, NoPretraining) else _monitor_bank(config, images)
    state, curves = pretrain_backbone(settings, images, architecture, bank, Checkpoint(scratch, "pretrain"))
    warnings = () if isinstance(settings, NoPretraining) else _collapse_warnings(settings, curves)
    with publish(out) as folder:
        save_file(state, folder / WEIGHTS_FILE)
        write_json(folder / ARCHITECTURE_FILE, architecture.model_dump(mode="json"))
        write_json(folder / CURVES, curves)
        record = PretrainRecord(
            step="pretrain",
            name="pretrain",
            parameters=settings.model_dump(mode="json"),
            inputs=inputs,
            metrics=_metrics(curves),
            details=PretrainDetails(curves=curves),
            warnings=warnings,
            artifacts=describe_files(folder, WEIGHTS_FILE, ARCHITECTURE_FILE, CURVES),
        )
        write_record(folder, record)
    return record


def _monitor_bank(config: Config, images: ImageSet) -> KnnBank:
    queries = images.indices(VALIDATION)
    if len(queries) < 2:
        raise DataError(
            f"the validation split holds {len(queries)} images, too few to monitor pretraining; add images, or raise "
            "data.validation_fraction"
        )
    budget = draw_label_budget(images, config.data.label_budget, config.pretrain.seed)
    labels = np.asarray(visible_labels(images, budget))
    return KnnBank(images.images_NHWC, labels, budget, queries)


def _metrics(curves: list[CurveRow]) -> dict[str, float]:
    """Return the last value of every curve; the last epoch is the result, not the best one."""
    if not curves:
        return {}
    return {f"pretrain/{name}": value for name, value in curves[-1].items() if name != "epoch"}


def _collapse_warnings(settings: RotNet | SimCLR, curves: list[CurveRow]) -> tuple[str, ...]:
    final = curves[-1]["spread"] if curves else 1.0
    if final >= MIN_SPREAD:
        return ()
    message = (
        f"the embeddings have collapsed: their spread is {final:.3f}, below {MIN_SPREAD}; the backbone maps all images "
        f"to nearly the same vector. Lower pretrain.optimiser.learning_rate (now {settings.optimiser.learning_rate}), "
        "strengthen pretrain.augmentation, or use another pretrain.method"
    )
    return (message,)
