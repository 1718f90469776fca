"""Recovery: training after a structural change, on labelled and unlabelled images.

The teacher is dense, or the large network by the pseudo-labels that dense was trained on. The loss is

    w * teacher loss + (1 - w) * cross-entropy of labelled images
        + hint_weight * the hint (winnow/compression/feature_distillation.py)

With dense the teacher loss is T^2 * KL(dense at temperature T || student at temperature T) (Hinton, Vinyals, Dean:
Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531). With pseudo-labels it is the cross-entropy of
their probabilities: they come from a larger network than dense, so that children learn from the same source as dense
and not from a copy of it, and no teacher runs (docs/decisions/0039-recovery-on-pseudo-labels.md).

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
from winnow.config import ROOT, Recovery
from winnow.data.augmentation import augment
from winnow.data.batches import Batches, BatchSource, JoinedBatches, labelled_per_batch
from winnow.data.dataset import TRAIN
from winnow.deploy.teacher_embeddings import TeacherTargets, load_targets
from winnow.errors import ConfigError
from winnow.models.classifier_head import feature_dim
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.records.method_results import TeacherKind
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
    teacher = _dense_teacher(settings, inputs) if teacher_kind(settings, inputs) == ROOT else None
    guide = _guide(settings, inputs, teacher)
    targets = image_targets(settings, inputs)
    trained = with_projector(model, settings, guide, targets)
    loss = distillation_loss(settings, inputs.images.image_size, teacher, guide, targets)
    inner = Hooks(lambda _, step: hooks.after_backward(model, step), lambda _, step: hooks.after_step(model, step))
    curves = run_to_end(fit(trained, batches, loss, plan, Checkpoint(inputs.scratch, name), inner))
    model.cpu().eval()
    return curves


def teacher_kind(settings: Recovery, inputs: MethodInputs) -> TeacherKind:
    """Return what the training learns from beside the labels; `auto` is resolved by the inputs."""
    if settings.teacher == "auto":
        return "dense" if inputs.pseudo_labels_NC is None else "pseudo-labels"
    return settings.teacher


def _guide(settings: Recovery, inputs: MethodInputs, teacher: nn.Module | None) -> nn.Module | None:
    """Return the network whose intermediate output is the hint; None where none runs."""
    if settings.hint == "pretrained":
        return frozen(_pretrained(inputs))
    if settings.hint in ("features", "attention"):
        return teacher or frozen(inputs.dense.load().model)
    return None


def _pretrained(inputs: MethodInputs) -> nn.Module:
    if inputs.load_backbone is None:
        raise ConfigError("recovery: hint: pretrained needs backbone=, the network that `pretrain` returned")
    return inputs.load_backbone()


def recovery_batches(settings: Recovery, inputs: MethodInputs, stream: int) -> BatchSource:
    """Return the batches: all images, with labelled ones at the end of each batch where some have no label.

    They yield the labels, or the indices of the images where more than the label is known of each.
    """
    images = inputs.images
    chosen = images.indices(TRAIN) if settings.images == "all" else inputs.budget
    labelled = chosen[inputs.labels_N[chosen] >= 0]
    yielded_N = np.arange(len(inputs.labels_N)) if learns_from_large_network(settings, inputs) else inputs.labels_N
    count = labelled_per_batch(settings.batch_size) if 0 < len(labelled) < len(chosen) else 0

    def make_batches(indices: NDArray[np.int64], size: int, seed: int) -> Batches:
        return Batches(images.training_NHWC, yielded_N, indices, size, seed)

    pool = make_batches(chosen, settings.batch_size - count, stream)
    return JoinedBatches(pool, make_batches(labelled, count, stream_seed(stream, "labelled"))) if count else pool


def _dense_teacher(settings: Recovery, inputs: MethodInputs) -> nn.Module:
    """Return the dense network, with cached logits where possible."""
    network = frozen(inputs.dense.load().model)
    if inputs.teacher_cache is None or not is_cacheable(settings):
        return network
    return CachedTeacher(network, inputs.teacher_cache.folder, inputs.teacher_cache.teacher)


def recovery_steps(settings: Recovery, inputs: MethodInputs) -> int:
    """Return the number of steps; an epoch is a pass over all training images, whichever of them are used."""
    return settings.steps_for(len(inputs.images.indices(TRAIN)))


@dataclass(frozen=True)
class ImageTargets:
    """The labels, embeddings and pseudo-labels of all images; an image is found by its index."""

    labels_N: torch.Tensor
    """int64; -1 wherever the label must not be used."""
    embeddings: TeacherTargets | None = None
    """Those of the large network, for the hint `embeddings`."""
    pseudo_labels_NC: torch.Tensor | None = None
    """Class probabilities that the training learns in place of dense's outputs."""


def learns_from_large_network(settings: Recovery, inputs: MethodInputs) -> bool:
    """Return whether the training uses embeddings or pseudo-labels of the large network."""
    return settings.hint == "embeddings" or teacher_kind(settings, inputs) == "pseudo-labels"


def image_targets(settings: Recovery, inputs: MethodInputs) -> ImageTargets | None:
    """Return what is known of each image; None where the training uses labels and the outputs of networks alone."""
    if not learns_from_large_network(settings, inputs):
        return None
    embeddings = pseudo_labels_NC = None
    if settings.hint == "embeddings":
        if inputs.teacher is None:
            raise ConfigError("recovery: hint: embeddings needs embeddings=, the result of `winnow.embed`")
        embeddings = load_targets(inputs.teacher, inputs.images)
    if teacher_kind(settings, inputs) == "pseudo-labels":
        pseudo_labels_NC = torch.from_numpy(np.array(inputs.pseudo_labels_NC, dtype=np.float32)).to(default_device())
    labels_N = torch.from_numpy(np.array(inputs.labels_N)).to(default_device())
    return ImageTargets(labels_N, embeddings, pseudo_labels_NC)


def with_projector(
    model: nn.Module, settings: Recovery, guide: nn.Module | None, targets: ImageTargets | None = None
) -> nn.Module:
    """Return the student, with a projector of its features where a hint compares features."""
    if targets is not None and targets.embeddings is not None:
        return FeatureProjector(model, targets.embeddings.width, settings.seed)
    if settings.hint not in ("features", "pretrained"):
        return model
    assert guide is not None
    return FeatureProjector(model, feature_dim(guide), settings.seed)


def frozen(model: nn.Module) -> nn.Module:
    """Return the network on the training device, in eval mode and without gradients."""
    return model.to(default_device()).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def distillation_loss(
    settings: Recovery,
    side: int,
    teacher: nn.Module | None,
    guide: nn.Module | None = None,
    targets: ImageTargets | None = None,
) -> Loss:
    """Return the loss of the module docstring as a function of (student, images, labels); label -1: unlabelled.

    `side`: size of the views in pixels. `teacher`: dense, if it runs. `guide`: the network that gives the hints.
    `targets`: what is known of each image; batches then hold indices in place of labels.
    """

    def loss(model: nn.Module, images_BCHW: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
        views_BCHW = augment(images_BCHW, settings.augmentation, side)
        labels_B = rows_B if targets is None else targets.labels_N[rows_B]
        guide_BC = hint_distance = None
        if targets is not None and targets.embeddings is not None:
            student_BC, hint_distance = predict_embeddings(model, views_BCHW, targets.embeddings.select(rows_B))
        elif settings.hint == "none":
            student_BC = model(views_BCHW).float()
        else:
            assert guide is not None
            student_BC, guide_BC, hint_distance = HINTS[settings.hint](model, guide, views_BCHW)
        hint_loss = 0.0 if hint_distance is None else settings.hint_weight * hint_distance
        if targets is not None and targets.pseudo_labels_NC is not None:
            teacher_loss = F.cross_entropy(student_BC, targets.pseudo_labels_NC[rows_B])
        elif teacher is None:
            return F.cross_entropy(student_BC, labels_B) + hint_loss
        elif teacher is guide and guide_BC is not None:
            teacher_loss = softened_kl(student_BC, guide_BC, settings.temperature)
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
