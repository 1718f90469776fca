"""Pretrain a backbone in memory by one of the methods of this package."""

from __future__ import annotations

import logging

import numpy as np
import torch

from winnow.config import Pretraining, TrainedPretraining
from winnow.data.batches import Batches
from winnow.data.dataset import TRAIN, ImageSet
from winnow.deploy.teacher_embeddings import TeacherTargets
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.state_loading import load_state
from winnow.pretraining import METHODS
from winnow.pretraining.inputs import PretrainingInputs
from winnow.pretraining.monitoring import KnnBank, monitor_embeddings
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.training.checkpoint import Checkpoint
from winnow.training.loop import Epoch, TrainingPlan, fit, run_to_end

log = logging.getLogger(__name__)


def pretrain_backbone(
    settings: Pretraining,
    images: ImageSet,
    architecture: Architecture,
    bank: KnnBank | None,
    checkpoint: Checkpoint,
    start: dict[str, torch.Tensor] | None = None,
    targets: TeacherTargets | None = None,
) -> tuple[dict[str, torch.Tensor], list[CurveRow]]:
    """Train a new backbone on all training images, without labels; return its weights on the CPU, and the curves.

    `bank`: the images on which kNN accuracy and the spread of embeddings are monitored; None: neither is. `start`:
    backbone weights; None: random ones. `targets`: embeddings of all images, for the method distill. Raises
    TrainingError when the loss is no longer a number.
    """
    model = build_model(architecture, seed=settings.seed)
    head = head_path(model)
    if start is not None:
        load_state(model, {**model.state_dict(), **start})
    curves: list[CurveRow] = []
    if isinstance(settings, TrainedPretraining):
        loss = METHODS[type(settings)](settings, model, PretrainingInputs(images.image_size, targets))
        stream = stream_seed(settings.seed, "pretraining")
        positions_N = np.arange(len(images.labels_N))
        batches = Batches(images.training_NHWC, positions_N, images.indices(TRAIN), settings.batch_size, stream)
        per_epoch = settings.steps_for(len(batches.indices)) // settings.epochs
        plan = TrainingPlan(settings.epochs, per_epoch, settings.optimiser, stream)
        log.info("%s: %d images, %d steps", settings.method, len(batches.indices), plan.steps)

        def monitor(epoch: Epoch) -> None:
            if bank is not None and (epoch.number % settings.monitor_every == 0 or epoch.number == epoch.of):
                epoch.row.update(monitor_embeddings(model, bank))

        curves = run_to_end(fit(model, batches, loss, plan, checkpoint), monitor)
    state = {name: value.detach().cpu().contiguous() for name, value in backbone_state(model, head).items()}
    return state, curves
