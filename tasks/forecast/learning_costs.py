"""Forecast of the steps that learn from images: embed, pretrain and finetune, and of the report on them."""

from __future__ import annotations

import time

from torch import nn

from tasks.forecast.candidate_costs import CandidateCosts
from tasks.forecast.data_counts import Cost
from tasks.forecast.trial_networks import EMBED, TrialNetworks, describe_steps
from winnow.config import ROOT, DistillEmbeddings, TrainedPretraining, UnlabelledTraining
from winnow.config.section import NO_FILE
from winnow.config.weights import NO_WEIGHTS
from winnow.data.dataset import TRAIN
from winnow.models.backbones import WEIGHTS_FILE, build_model, load_model
from winnow.models.classifier_head import feature_dim
from winnow.pretraining import METHODS
from winnow.pretraining.inputs import PretrainingInputs
from winnow.reporting.embedding_pictures import MOST_IMAGES
from winnow.steps.report import MOST_CHECKED, MOST_COMPARED
from winnow.training import unlabelled_images
from winnow.training.finetuning import classification_loss
from winnow.training.pseudo_labels import UnlabelledInputs

REPORT_SECONDS = 6.0
"""Seconds to read records and draw plots."""


def embed_cost(trial: TrialNetworks) -> Cost:
    """Forecast the embeddings of all images by the teacher."""
    if not trial.has_teacher:
        return Cost(0.0, 0.0, "no teacher")
    seconds_per_image = trial.ensure_teacher()
    teacher, _ = load_model(trial.folder / EMBED)
    images = trial.counts.train + trial.counts.validation
    embeddings_bytes = trial.counts.images * feature_dim(teacher) * 2
    disk_mb = (embeddings_bytes + (trial.folder / EMBED / WEIGHTS_FILE).stat().st_size) / 1e6
    return Cost(images * seconds_per_image, disk_mb, f"{images} images, {1 / seconds_per_image:.0f}/s")


def pretrain_cost(trial: TrialNetworks) -> Cost:
    """Forecast the training without labels, and its monitoring."""
    settings, counts = trial.config.pretrain, trial.counts
    disk_mb = (trial.folder / ROOT / WEIGHTS_FILE).stat().st_size / 1e6
    if not isinstance(settings, TrainedPretraining):
        return Cost(0.0, disk_mb, "no pretraining")
    model = build_model(trial.architecture, seed=settings.seed)
    targets = trial.targets() if isinstance(settings, DistillEmbeddings) else None
    loss = METHODS[type(settings)](settings, model, PretrainingInputs(trial.architecture.image_size, targets))
    per_step = trial.microbenchmarks.seconds_per_step(model, loss, settings.batch_size, settings.optimiser)
    steps = settings.steps_for(counts.train)
    evaluations = -(-settings.epochs // settings.monitor_every)
    evaluation_seconds = (
        evaluations * (counts.validation + counts.budget) / trial.microbenchmarks.images_per_second(model)
    )
    return Cost(steps * per_step + evaluation_seconds, disk_mb, describe_steps(steps, settings.batch_size, per_step))


def finetune_cost(trial: TrialNetworks, candidates: CandidateCosts) -> Cost:
    """Forecast all arms and label seeds, cross-validation, training on images without labels, and the file of dense."""
    settings, counts = trial.config.finetune, trial.counts
    model = build_model(trial.architecture)
    per_step = finetuning_step_seconds(trial, model)
    pretraining = trial.config.pretrain
    arms = 1 + isinstance(pretraining, TrainedPretraining) + (pretraining.start != NO_WEIGHTS)
    arms += settings.weights != NO_FILE
    trainings = arms * (len(settings.learning_rates) + len(settings.seeds) - 1)
    folds = settings.folds if settings.needs_cross_validation(counts.choosing) else 0
    labels = [counts.budget] * trainings
    labels += [(counts.budget + counts.choosing) * (folds - 1) // folds for _ in range(folds)]
    steps = sum(settings.steps_for(count) for count in labels)
    per_image = 1 / trial.microbenchmarks.images_per_second(model)
    crossvalidated = counts.budget + counts.choosing if folds else 0
    prediction_seconds = (trainings * counts.choosing + crossvalidated) * per_image
    probe_seconds = (counts.budget + counts.choosing) * per_image
    probe_seconds += trial.microbenchmarks.probe_seconds(model, counts.budget, counts.classes)
    started = time.monotonic()
    candidates.ensure(ROOT)
    export_seconds = time.monotonic() - started
    finish_seconds, disk_mb = candidates.finish(ROOT)
    basis = f"{trainings} trainings" + (f" and {folds} of cross-validation" if folds else "")
    unlabelled_seconds, unlabelled_basis = _unlabelled(trial, model, len(settings.seeds) + folds)
    basis += unlabelled_basis
    seconds = (
        steps * per_step + unlabelled_seconds + prediction_seconds + probe_seconds + export_seconds + finish_seconds
    )
    return Cost(seconds, disk_mb, f"{basis}: {describe_steps(steps, settings.batch_size, per_step)}")


def finetuning_step_seconds(trial: TrialNetworks, model: nn.Module) -> float:
    """Return the seconds of one step of fine-tuning."""
    settings = trial.config.finetune
    loss, rate = classification_loss(settings, trial.architecture.image_size), settings.learning_rates[0]
    return trial.microbenchmarks.seconds_per_step(model, loss, settings.batch_size, settings.optimiser(rate))


def _unlabelled(trial: TrialNetworks, model: nn.Module, trainings: int) -> tuple[float, str]:
    """Return the seconds of the trainings on images without labels, and their basis for users."""
    settings = trial.config.finetune.unlabelled
    if not isinstance(settings, UnlabelledTraining) or trial.counts.budget == trial.counts.train:
        return 0.0, ""
    teacher = trial.targets() if trial.has_teacher else None
    budget = trial.images.indices(TRAIN)
    inputs = UnlabelledInputs(trial.images, budget, budget, 0, teacher)
    prepared = unlabelled_images.METHODS[type(settings)](settings, inputs, model)
    per_step = trial.microbenchmarks.seconds_per_step(
        prepared.trained, prepared.loss, settings.batch_size, settings.optimiser
    )
    steps = settings.steps_for(trial.counts.train)
    basis = f", {trainings} on images without labels: {describe_steps(steps, settings.batch_size, per_step)}"
    return trainings * steps * per_step, basis


def report_cost(trial: TrialNetworks) -> Cost:
    """Forecast plots, the embeddings that the report shows, and the check of the labels."""
    counts, model = trial.counts, build_model(trial.architecture)
    checked = min(counts.budget + counts.choosing, MOST_CHECKED)
    embedded = checked + min(counts.validation, MOST_IMAGES) + min(counts.train, MOST_COMPARED)
    seconds = REPORT_SECONDS
    if not trial.has_teacher:
        seconds += embedded / trial.microbenchmarks.images_per_second(model)
    folds = trial.config.finetune.folds
    seconds += folds * trial.microbenchmarks.probe_seconds(model, checked * (folds - 1) // folds, counts.classes)
    return Cost(seconds, 1.0, f"draws plots, checks {checked:,} labels")
