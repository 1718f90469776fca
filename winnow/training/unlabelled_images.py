"""The second part of fine-tuning: train on, with images that have no label (`finetune.unlabelled`).

    train_on = unlabelled_training(config, images, embedded)
    result = train_on(model, budget, checkpoint)

Two methods. Propagation gives every training image a pseudo-label once, by label propagation, and trains on these
with cross-entropy; with a teacher also on its embeddings. FixMatch (winnow/training/fixmatch.py) makes pseudo-labels as
it trains. In both an eighth of each batch is drawn from the labelled images (as in FixMatch). Pseudo-labels of
validation images are made only to count how many are right; their labels are not used, and nothing is trained on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from winnow.config import Config, FixMatch, Propagation, UnlabelledTraining
from winnow.data.augmentation import augment
from winnow.data.batches import Batches, BatchSource, JoinedBatches, labelled_per_batch
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet
from winnow.data.splits import draw_label_budget, visible_labels
from winnow.deploy.batch_inference import predict_torch
from winnow.deploy.teacher_embeddings import TeacherTargets, has_embeddings, load_targets
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.timing_lock import compute_lock
from winnow.training.checkpoint import Checkpoint
from winnow.training.device import default_device
from winnow.training.feature_projector import FeatureProjector, predict_embeddings
from winnow.training.fixmatch import AdaptiveThresholds, fixmatch_loss
from winnow.training.loop import Loss, TrainingPlan, fit, run_to_end
from winnow.training.pseudo_labels import (
    UnlabelledInputs,
    network_pseudo_labels,
    teacher_pseudo_labels,
    with_visible_labels,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlabelledResult:
    """The outcome of a training on unlabelled images."""

    steps: int
    curves: list[CurveRow]
    precision: float | None
    """Share of right pseudo-labels among those given to labelled validation images; None if none was given."""
    coverage: float
    """Share of those images that were given a pseudo-label."""
    pseudo_labels_NC: NDArray[np.float32] | None = field(compare=False, repr=False)
    """Class probabilities of all images by propagation on the teacher's embeddings, those with a visible label one-hot;
    None: by another method or without a teacher.
    """


@dataclass(frozen=True)
class UnlabelledTrainer:
    """Trains fine-tuned networks on, by the method and on the images of a run."""

    settings: UnlabelledTraining
    images: ImageSet
    teacher: TeacherTargets | None
    seed: int

    def __call__(
        self,
        model: nn.Module,
        budget: NDArray[np.int64],
        checkpoint: Checkpoint,
        *,
        seed: int | None = None,
        held_out: NDArray[np.int64] | None = None,
    ) -> UnlabelledResult:
        """Train `model` in place; `budget`: indices of the images whose labels may be used.

        `held_out`: indices of images that nothing may be trained on, nor on others of their groups.
        """
        pool = self.images.indices(TRAIN)
        if held_out is not None:
            groups_N = self.images.groups_N
            pool = pool[~np.isin(groups_N[pool], groups_N[held_out])]
        inputs = UnlabelledInputs(self.images, budget, pool, self.seed if seed is None else seed, self.teacher)
        return train_on_unlabelled(self.settings, inputs, model, checkpoint)

    def pseudo_labels(self, budget: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the pseudo-labels that a call makes with these labels (UnlabelledResult.pseudo_labels_NC)."""
        if not isinstance(self.settings, Propagation) or self.teacher is None:
            return None
        inputs = UnlabelledInputs(self.images, budget, self.images.indices(TRAIN), self.seed, self.teacher)
        with compute_lock():
            probabilities_NC = teacher_pseudo_labels(self.settings, inputs, self.teacher)
        return with_visible_labels(probabilities_NC, inputs)


def unlabelled_training(config: Config, images: ImageSet, embedded: Path | None) -> UnlabelledTrainer | None:
    """Return the training that `finetune.unlabelled` asks for; None where every training image has a label.

    `embedded`: the folder of embed, whose embeddings propagation uses where there is a teacher.
    """
    settings = config.finetune.unlabelled
    if not isinstance(settings, UnlabelledTraining):
        return None
    budget = draw_label_budget(images, config.data.label_budget, config.finetune.seeds[0])
    if len(budget) == len(images.indices(TRAIN)):
        log.info("finetune.unlabelled: every training image has a label, so there is no further training")
        return None
    teacher = None
    if isinstance(settings, Propagation) and has_embeddings(embedded):
        teacher = load_targets(embedded, images)
    return UnlabelledTrainer(settings, images, teacher, config.finetune.seeds[0])


def train_on_unlabelled(
    settings: UnlabelledTraining, inputs: UnlabelledInputs, model: nn.Module, checkpoint: Checkpoint
) -> UnlabelledResult:
    """Train a fine-tuned `model` on, in place. Raises TrainingError when the loss is no longer a number."""
    with compute_lock():
        method = METHODS[type(settings)](settings, inputs, model)
    stream = stream_seed(inputs.seed, "unlabelled images")
    train = len(inputs.images.indices(TRAIN))
    plan = TrainingPlan(settings.epochs, settings.steps_for(train) // settings.epochs, settings.optimiser, stream)
    curves = run_to_end(fit(method.trained, method.batches, method.loss, plan, checkpoint))
    model.cpu().eval()
    precision, coverage = _count_right(method, inputs.images)
    return UnlabelledResult(plan.steps, curves, precision, coverage, method.pseudo_labels_NC)


def _count_right(method: _Method, images: ImageSet) -> tuple[float | None, float]:
    """Return precision and coverage of the pseudo-labels of labelled validation images; (None, 0) without any."""
    known = images.indices(VALIDATION, labelled=True)
    if not len(known):
        return None, 0.0
    classes_K, given_K = method.pseudo_labels(known)
    right_K = classes_K == images.labels_N[known]
    return float(right_K[given_K].mean()) if given_K.any() else None, float(given_K.mean())


@dataclass(frozen=True)
class _Method:
    """A training: the network, its batches and its loss."""

    trained: nn.Module
    """The network, with what the method adds to it."""
    batches: BatchSource
    loss: Loss
    pseudo_labels: Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.bool_]]]
    """Indices -> (class, whether it is given), after training."""
    pseudo_labels_NC: NDArray[np.float32] | None = None
    """See UnlabelledResult."""


def _batches(settings: UnlabelledTraining, inputs: UnlabelledInputs, labels_N: NDArray[np.int64]) -> BatchSource:
    """Return batches of the pool with labelled images at the end of each; `labels_N`: what they yield."""
    images, stream = inputs.images, stream_seed(inputs.seed, "unlabelled images")
    count = labelled_per_batch(settings.batch_size)
    pool = Batches(images.training_NHWC, labels_N, inputs.pool, settings.batch_size - count, stream)
    labelled = Batches(images.training_NHWC, labels_N, inputs.budget, count, stream_seed(stream, "labelled"))
    return JoinedBatches(pool, labelled)


def _propagation(settings: UnlabelledTraining, inputs: UnlabelledInputs, model: nn.Module) -> _Method:
    assert isinstance(settings, Propagation)
    images, teacher, side = inputs.images, inputs.teacher, inputs.images.image_size
    if teacher is None:
        probabilities_NC = network_pseudo_labels(settings, inputs, model)
    else:
        probabilities_NC = teacher_pseudo_labels(settings, inputs, teacher)
        model = FeatureProjector(model, teacher.width, inputs.seed)
    learned_NC = with_visible_labels(probabilities_NC, inputs)
    targets_NC = torch.from_numpy(learned_NC).to(default_device())

    def loss(model: nn.Module, images_BCHW: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
        views_BCHW = augment(images_BCHW, settings.augmentation, side)
        if teacher is None:
            return F.cross_entropy(model(views_BCHW).float(), targets_NC[positions_B])
        logits_BC, distance = predict_embeddings(model, views_BCHW, teacher.select(positions_B))
        return F.cross_entropy(logits_BC, targets_NC[positions_B]) + settings.embedding_weight * distance

    def pseudo_labels(indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        return probabilities_NC[indices].argmax(1), np.ones(len(indices), dtype=np.bool_)

    batches = _batches(settings, inputs, np.arange(len(images.labels_N)))
    return _Method(model, batches, loss, pseudo_labels, learned_NC if teacher is not None else None)


def _fixmatch(settings: UnlabelledTraining, inputs: UnlabelledInputs, model: nn.Module) -> _Method:
    assert isinstance(settings, FixMatch)
    images = inputs.images
    labels_N = np.asarray(visible_labels(images, inputs.budget))
    counts_C = np.bincount(images.labels_N[inputs.budget], minlength=len(images.classes))
    trained = AdaptiveThresholds(model, torch.from_numpy(counts_C / counts_C.sum()))

    def pseudo_labels(indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        probabilities_BC = torch.from_numpy(predict_torch(model, images.images_NHWC, indices)).softmax(1)
        classes_B, passed_B = trained.cpu().pseudo_labels(probabilities_BC)
        return classes_B.numpy(), passed_B.numpy()

    loss = fixmatch_loss(settings, images.image_size, labelled_per_batch(settings.batch_size))
    return _Method(trained, _batches(settings, inputs, labels_N), loss, pseudo_labels)


METHODS: dict[type[UnlabelledTraining], Callable[[UnlabelledTraining, UnlabelledInputs, nn.Module], _Method]] = {
    Propagation: _propagation,
    FixMatch: _fixmatch,
}
"""Type of the settings -> function that prepares the training."""
