"""Fine-tuning on the label budget, in arms that differ only in where the backbone's weights come from.

An arm is a set of starting weights. All arms get the same labels, head, order of images, augmentation, number of steps
and of learning rates. The learning rate of an arm is selected on validation with the first seed and then used for its
other seeds. The result is the last step, not the best one. A linear probe (logistic regression on frozen features) is
the baseline.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from winnow.config import Config, Finetune
from winnow.data.augmentation import augment
from winnow.data.batches import Batches
from winnow.data.dataset import VALIDATION, ImageSet
from winnow.data.splits import draw_label_budget, known_label_indices, visible_labels
from winnow.deploy.batch_inference import embed, predict_torch
from winnow.errors import DataError
from winnow.models.backbones import Architecture, build_model
from winnow.models.classifier_head import new_classifier
from winnow.models.state_loading import load_state
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.records.finetune import ArmTraining, LinearProbe
from winnow.timing_lock import compute_lock
from winnow.training.checkpoint import Checkpoint
from winnow.training.folds import grouped_folds
from winnow.training.linear_probe import fit_probe
from winnow.training.loop import Loss, TrainingPlan, fit, run_to_end

log = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]


class TrainOn(Protocol):
    """A further training of a fine-tuned network."""

    def __call__(
        self,
        model: nn.Module,
        budget: NDArray[np.int64],
        checkpoint: Checkpoint,
        *,
        held_out: NDArray[np.int64] | None = None,
    ) -> object:
        """Train `model` in place on the labels of `budget`, and not on the images at `held_out`."""


@dataclass(frozen=True)
class FinetunedArm:
    """One fine-tuning of one arm."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    top1: float
    """Top-1 accuracy on the labelled validation images, a fraction."""
    model: nn.Module
    curves: list[CurveRow]

    def row(self) -> ArmTraining:
        """Return the row for the record."""
        return ArmTraining(seed=self.seed, learning_rate=self.learning_rate, steps=self.steps, top1=self.top1)


@dataclass(frozen=True)
class CrossValidation:
    """Cross-validated logits for every visible label, each from a network that was not trained on it."""

    labelled_L: NDArray[np.int64]
    """Indices of the labelled images, training and validation."""
    logits_LC: NDArray[np.float32]
    folds: int


def train_arms(
    config: Config, images: ImageSet, architecture: Architecture, arms: dict[str, StateDict | None], scratch: Path
) -> tuple[list[FinetunedArm], list[FinetunedArm]]:
    """Fine-tune every arm on every seed. `arms` maps a name to backbone weights, None for random ones.

    Returns (the trainings at the selected rates, all trainings of the first seed). Raises DataError when there is no
    labelled validation image.
    """
    settings = config.finetune
    if len(images.indices(VALIDATION, labelled=True)) == 0:
        raise DataError(
            "no validation image has a label, so no learning rate can be selected and no accuracy measured; add "
            "labelled images, or raise data.validation_fraction"
        )
    first, *others = settings.seeds
    total = len(arms) * (len(settings.learning_rates) + len(others))
    tried: list[FinetunedArm] = []
    chosen: list[FinetunedArm] = []
    done = 0

    def train_one(arm: str, seed: int, rate: float) -> FinetunedArm:
        nonlocal done
        done += 1
        log.info("training %d of %d: %s, seed %d, rate %g", done, total, arm, seed, rate)
        model = initial_model(architecture, arms[arm], seed)
        budget = draw_label_budget(images, config.data.label_budget, seed)
        return _train(settings.for_arm(arms[arm] is not None), images, budget, model, (arm, seed, rate), scratch)

    for arm in arms:
        attempts = [train_one(arm, first, rate) for rate in settings.learning_rates]
        best = max(attempts, key=lambda training: training.top1)
        tried += attempts
        chosen += [best, *(train_one(arm, seed, best.learning_rate) for seed in others)]
    return chosen, tried


def initial_model(architecture: Architecture, state: StateDict | None, seed: int) -> nn.Module:
    """Return a network with the arm's backbone weights and a head drawn from the seed, the same for every arm."""
    model = build_model(architecture, seed=seed)
    if state is not None:
        load_state(model, {**model.state_dict(), **state})
    return new_classifier(model, architecture.num_classes, seed)


def _train(
    settings: Finetune,
    images: ImageSet,
    budget: NDArray[np.int64],
    model: nn.Module,
    run: tuple[str, int, float],
    scratch: Path,
) -> FinetunedArm:
    arm, seed, rate = run
    checkpoint = Checkpoint(scratch, f"{arm}-seed{seed}-rate{rate:g}")
    steps, curves = train_on_labels(settings, images, model, budget, (seed, rate), checkpoint)
    return FinetunedArm(arm, seed, rate, steps, validation_top1(model, images), model, curves)


def train_on_labels(
    settings: Finetune,
    images: ImageSet,
    model: nn.Module,
    chosen: NDArray[np.int64],
    seed_and_rate: tuple[int, float],
    checkpoint: Checkpoint,
) -> tuple[int, list[CurveRow]]:
    """Train on the labels of `chosen` in place and return (steps, curves); `seed_and_rate`: seed, learning rate."""
    seed, rate = seed_and_rate
    stream = stream_seed(seed, "fine-tuning")
    batches = Batches(images.training_NHWC, visible_labels(images, chosen), chosen, settings.batch_size, stream)
    per_epoch = settings.steps_for(len(chosen)) // settings.epochs
    plan = TrainingPlan(settings.epochs, per_epoch, settings.optimiser(rate), stream)
    curves = run_to_end(fit(model, batches, classification_loss(settings, images.image_size), plan, checkpoint))
    model.cpu().eval()
    return plan.steps, curves


def classification_loss(settings: Finetune, side: int) -> Loss:
    """Return the cross-entropy loss on augmented views of `side` pixels."""

    def loss(model: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        logits = model(augment(images_BCHW, settings.augmentation, side)).float()
        return F.cross_entropy(logits, labels_B, label_smoothing=settings.label_smoothing)

    return loss


def validation_top1(model: nn.Module, images: ImageSet) -> float:
    """Return the top-1 accuracy on the labelled validation images, a fraction."""
    indices = images.indices(VALIDATION, labelled=True)
    logits = predict_torch(model, images.images_NHWC, indices)
    return float((logits.argmax(1) == images.labels_N[indices]).mean())


def needs_cross_validation(config: Config, images: ImageSet) -> bool:
    """Return True if finetune.cross_validation asks for it, or there are few labelled validation images.

    False where no class has two labels, which cannot be in two folds.
    """
    known = known_label_indices(images, config.data.label_budget, config.finetune.seeds[0])
    if not len(known) or int(np.bincount(images.labels_N[known]).max()) < 2:
        return False
    return config.finetune.needs_cross_validation(len(images.indices(VALIDATION, labelled=True)))


def cross_validate(
    config: Config,
    images: ImageSet,
    architecture: Architecture,
    state: StateDict | None,
    dense: FinetunedArm,
    scratch: Path,
    train_on: TrainOn | None = None,
) -> CrossValidation:
    """Return logits for every visible label from networks that were not trained on it.

    They start like `dense`, use its learning rate, and train on the other folds of training and validation labels
    together; then by `train_on`, where dense was trained so. Images of one group, or duplicates, share a fold; classes
    are spread evenly (scikit-learn's StratifiedGroupKFold). The rate was selected on the validation part of the labels,
    so results are slightly optimistic.
    """
    known = known_label_indices(images, config.data.label_budget, dense.seed)
    labels, groups = images.labels_N[known], images.groups_N[known]
    folds = min(config.finetune.folds, len(np.unique(groups)), int(np.bincount(labels).max()))
    logits_LC = np.empty((len(known), len(images.classes)), dtype=np.float32)
    for number, (train_part, held_out) in enumerate(grouped_folds(labels, groups, folds, dense.seed), start=1):
        log.info("cross-validation over %d labels, network %d of %d", len(known), number, folds)
        model = initial_model(architecture, state, dense.seed)
        checkpoint = Checkpoint(scratch, f"fold{number}of{folds}")
        recipe = (dense.seed, dense.learning_rate)
        settings = config.finetune.for_arm(state is not None)
        train_on_labels(settings, images, model, known[train_part], recipe, checkpoint)
        if train_on is not None:
            further = Checkpoint(scratch, f"{checkpoint.name}-unlabelled")
            train_on(model, known[train_part], further, held_out=known[held_out])
        logits_LC[held_out] = predict_torch(model, images.images_NHWC, known[held_out])
    return CrossValidation(known, logits_LC, folds)


def linear_probe(config: Config, images: ImageSet, model: nn.Module) -> LinearProbe:
    """Return the accuracy of logistic regression on standardised frozen features of the first seed's budget."""
    seed = config.finetune.seeds[0]
    budget = draw_label_budget(images, config.data.label_budget, seed)
    validation = images.indices(VALIDATION, labelled=True)
    features = embed(model.eval(), images.images_NHWC, budget).numpy()
    queries = embed(model, images.images_NHWC, validation).numpy()
    with compute_lock():
        probe = fit_probe(features, images.labels_N[budget])
    truth: NDArray[np.int64] = images.labels_N[validation]
    return LinearProbe(seed=seed, top1=float((probe.predict(queries) == truth).mean()))
