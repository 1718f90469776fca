"""Pretrain a backbone in memory by one of the methods of this package."""

from __future__ import annotations

import logging

import torch

from winnow.config import NoPretraining, RotNet, SimCLR
from winnow.data.batches import Batches
from winnow.data.dataset import TRAIN, ImageSet
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import backbone_state, head_path
from winnow.pretraining import METHODS
from winnow.pretraining.monitoring import KnnBank, monitor_embeddings
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.training.loop import Checkpoint, Epoch, TrainingPlan, fit, run_to_end

log = logging.getLogger(__name__)


def pretrain_backbone(
    settings: NoPretraining | RotNet | SimCLR,
    images: ImageSet,
    architecture: Architecture,
    bank: KnnBank | None,
    checkpoint: Checkpoint,
) -> tuple[dict[str, torch.Tensor], list[CurveRow]]:
    """Train a new backbone on all training images, without labels; return its weights on the CPU, and the curves.

    `bank`: the images on which kNN accuracy and the spread of embeddings are monitored; None: neither is. Raises
    TrainingError when the loss is no longer a number.
    """
    model = build_model(architecture, seed=settings.seed)
    head = head_path(model)
    curves: list[CurveRow] = []
    if not isinstance(settings, NoPretraining):
        loss = METHODS[type(settings)](settings, model, images.image_size)
        stream = stream_seed(settings.seed, "pretraining")
        batches = Batches(images.training_NHWC, images.labels_N, images.indices(TRAIN), settings.batch_size, stream)
        per_epoch = settings.steps_for(len(batches.indices)) // settings.epochs
        plan = TrainingPlan(settings.epochs, per_epoch, settings.optimiser, stream)
        log.info("%s: %d images, %d steps", settings.method, len(batches.indices), plan.steps)

        def monitor(epoch: Epoch) -> None:
            if bank is not None and (epoch.number % settings.monitor_every == 0 or epoch.number == epoch.of):
                epoch.row.update(monitor_embeddings(model, bank))

        curves = run_to_end(fit(model, batches, loss, plan, checkpoint), monitor)
    state = {name: value.detach().cpu().contiguous() for name, value in backbone_state(model, head).items()}
    return state, curves
