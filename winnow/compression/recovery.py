"""Recovery: training after a structural change, with dense as the teacher, on labelled and unlabelled images.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015, arXiv 1503.02531). The loss is

    w * T^2 * KL(teacher at temperature T || student at temperature T) + (1 - w) * cross-entropy of labelled images
        + hint_weight * the hint (winnow/compression/feature_distillation.py)

The first mean is over the whole batch, the second over its labelled images, so w is the weight of the teacher however
few images have labels. Where some have none, an eighth of every batch is drawn from the labelled images (as in
FixMatch, Sohn et al. 2020, arXiv 2001.07685, with seven unlabelled images for each labelled one) and the rest from all:
a mean over the three labelled images that a batch would hold by chance would be mostly noise, and missing at some
steps.

Teacher and student see the same augmented view (Beyer et al. 2022, arXiv 2106.05237, "function matching"), so
unlabelled images teach as well as labelled ones. Without a teacher the loss is cross-entropy on the label budget alone,
for the same number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from winnow.compression.feature_distillation import HINTS
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.teacher_cache import CachedTeacher, is_cacheable
from winnow.config import Recovery
from winnow.data.augmentation import augment
from winnow.data.batches import Batches, BatchSource, JoinedBatches, labelled_per_batch
from winnow.data.dataset import TRAIN
from winnow.deploy.teacher_embeddings import TeacherTargets, load_targets
from winnow.errors import ConfigError
from winnow.models.classifier_head import feature_dim
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.training.checkpoint import Checkpoint
from winnow.training.device import default_device
from winnow.training.feature_projector import FeatureProjector, predict_embeddings
from winnow.training.loop import NO_HOOKS, Hooks, Loss, TrainingPlan, fit, run_to_end


def recover(
    model: nn.Module,
    settings: Recovery,
    inputs: MethodInputs,
    name: str = "recovery",
    hooks: Hooks = NO_HOOKS,
) -> list[CurveRow]:
    """Train `model` in place and return its curves.

    `name`: of the checkpoint, distinct for each training of a method. `hooks` get `model` without the projector that a
    hint adds.
    """
    stream = stream_seed(settings.seed, "recovery")
    batches = recovery_batches(settings, inputs, stream)
    plan = TrainingPlan(
        settings.epochs, recovery_steps(settings, inputs) // settings.epochs, settings.optimiser, stream
    )
    teacher = _teacher(settings, inputs)
    guide = _frozen(_pretrained(inputs)) if settings.hint == "pretrained" else teacher
    embedded = embedded_images(settings, inputs)
    trained = with_projector(model, settings, guide, embedded)
    loss = distillation_loss(settings, inputs.images.image_size, teacher, guide, embedded)
    inner = Hooks(lambda _, step: hooks.after_backward(model, step), lambda _, step: hooks.after_step(model, step))
    curves = run_to_end(fit(trained, batches, loss, plan, Checkpoint(inputs.scratch, name), inner))
    model.cpu().eval()
    return curves


def _pretrained(inputs: MethodInputs) -> nn.Module:
    if inputs.load_backbone is None:
        raise ConfigError("recovery: hint: pretrained needs backbone=, the network that `pretrain` returned")
    return inputs.load_backbone()


def recovery_batches(settings: Recovery, inputs: MethodInputs, stream: int) -> BatchSource:
    """Return the batches: all images, with labelled ones at the end of each batch where some have no label.

    They yield the labels, or for the hint `embeddings` the indices of the images.
    """
    images = inputs.images
    chosen = images.indices(TRAIN) if settings.images == "all" else inputs.budget
    labelled = chosen[inputs.labels_N[chosen] >= 0]
    yielded_N = np.arange(len(inputs.labels_N)) if settings.hint == "embeddings" else inputs.labels_N
    count = labelled_per_batch(settings.batch_size) if 0 < len(labelled) < len(chosen) else 0

    def make_batches(indices: NDArray[np.int64], size: int, seed: int) -> Batches:
        return Batches(images.training_NHWC, yielded_N, indices, size, seed)

    pool = make_batches(chosen, settings.batch_size - count, stream)
    return JoinedBatches(pool, make_batches(labelled, count, stream_seed(stream, "labelled"))) if count else pool


def _teacher(settings: Recovery, inputs: MethodInputs) -> nn.Module | None:
    """Return the dense network, with cached logits where possible; None without a teacher."""
    if settings.teacher != "dense":
        return None
    network = _frozen(inputs.dense.load().model)
    if inputs.teacher_cache is None or not is_cacheable(settings):
        return network
    return CachedTeacher(network, inputs.teacher_cache.folder, inputs.teacher_cache.teacher)


def recovery_steps(settings: Recovery, inputs: MethodInputs) -> int:
    """Return the number of steps; an epoch is a pass over all training images, whichever of them are used."""
    return settings.steps_for(len(inputs.images.indices(TRAIN)))


@dataclass(frozen=True)
class EmbeddedImages:
    """The embeddings of the large network, and the labels, by the index of an image."""

    targets: TeacherTargets
    labels_N: torch.Tensor
    """int64; -1 wherever the label must not be used."""


def embedded_images(settings: Recovery, inputs: MethodInputs) -> EmbeddedImages | None:
    """Return what the hint `embeddings` learns; None for other hints."""
    if settings.hint != "embeddings":
        return None
    assert inputs.teacher is not None, "candidate_tree.py was not asked"
    labels_N = torch.from_numpy(np.array(inputs.labels_N)).to(default_device())
    return EmbeddedImages(load_targets(inputs.teacher, inputs.images), labels_N)


def with_projector(
    model: nn.Module, settings: Recovery, guide: nn.Module | None, embedded: EmbeddedImages | None = None
) -> nn.Module:
    """Return the student, with a projector of its features where a hint compares features."""
    if embedded is not None:
        return FeatureProjector(model, embedded.targets.width, settings.seed)
    if settings.hint not in ("features", "pretrained"):
        return model
    assert guide is not None
    return FeatureProjector(model, feature_dim(guide), settings.seed)


def _frozen(model: nn.Module) -> nn.Module:
    """Return the network on the training device, in eval mode and without gradients."""
    return model.to(default_device()).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def distillation_loss(
    settings: Recovery,
    side: int,
    teacher: nn.Module | None,
    guide: nn.Module | None = None,
    embedded: EmbeddedImages | None = None,
) -> Loss:
    """Return the loss of the module docstring as a function of (student, images, labels); label -1: unlabelled.

    `side`: size of the views in pixels. `guide`: the network that gives the hints. `embedded`: for the hint
    `embeddings`, where batches hold indices in place of labels.
    """

    def loss(model: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        views_BCHW = augment(images_BCHW, settings.augmentation, side)
        guide_BC = hint_distance = None
        if embedded is not None:
            student_BC, hint_distance = predict_embeddings(model, views_BCHW, embedded.targets.select(labels_B))
            labels_B = embedded.labels_N[labels_B]
        elif settings.hint == "none":
            student_BC = model(views_BCHW).float()
        else:
            assert guide is not None
            student_BC, guide_BC, hint_distance = HINTS[settings.hint](model, guide, views_BCHW)
        hint_loss = 0.0 if hint_distance is None else settings.hint_weight * hint_distance
        if teacher is None:
            return F.cross_entropy(student_BC, labels_B) + hint_loss
        if teacher is guide and guide_BC is not None:
            teacher_BC = guide_BC
        else:
            with torch.no_grad():
                teacher_BC = teacher(views_BCHW).float()
        teacher_loss = softened_kl(student_BC, teacher_BC, settings.temperature)
        label_loss = labelled_cross_entropy(student_BC, labels_B)
        return settings.teacher_weight * teacher_loss + (1 - settings.teacher_weight) * label_loss + hint_loss

    return loss


def softened_kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher || student), mean over the batch, scalar."""
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def labelled_cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, mean over the labelled images of the batch, scalar; 0 without any (label -1: none)."""
    known = (labels_B >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits_BC, labels_B, ignore_index=-1, reduction="sum") / known
