"""Training after a change of structure: the dense network teaches, on images with and without labels.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015, arXiv 1503.02531). The loss is

    w * T^2 * KL(teacher at temperature T || student at temperature T) + (1 - w) * cross-entropy of labelled images
        + hint_weight * what a hint adds (winnow/compression/feature_distillation.py)

The first mean is over the whole batch, the second over its labelled images, so w says what it is called: the weight of
the teacher, however few images have labels. Where some have none, an eighth of every batch is drawn from the labelled
ones (as in FixMatch, Sohn et al. 2020, arXiv 2001.07685, with seven unlabelled images for each labelled one), the rest
from all: a mean over the three labelled images that a batch would hold by chance would be mostly noise, and missing
from some steps.

The teacher sees the very view that the student sees (Beyer et al. 2022, arXiv 2106.05237, "function matching"), so
unlabelled images teach as well as labelled ones. Without a teacher it is cross-entropy on the label budget alone, for
the same number of steps.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from winnow.compression.feature_distillation import HINTS, FeatureProjector
from winnow.compression.method_inputs import Inputs
from winnow.compression.teacher_cache import CachedTeacher, is_recalled
from winnow.config import Recovery
from winnow.data.augmentation import augment
from winnow.data.batches import Batches, BatchSource, JoinedBatches
from winnow.data.dataset import TRAIN
from winnow.models.backbones import load_backbone, load_model
from winnow.models.classifier_head import feature_dim
from winnow.random_streams import stream_seed
from winnow.records import record_digest
from winnow.training.loop import NO_HOOKS, Checkpoint, Hooks, Loss, Plan, Row, device, drain, fit

LABELLED_SHARE = 1 / 8
"""Of a batch, drawn from the labelled images where not all have labels."""


def recover(
    model: nn.Module,
    settings: Recovery,
    inputs: Inputs,
    name: str = "recovery",
    hooks: Hooks = NO_HOOKS,
) -> list[Row]:
    """Train `model` in place and return its curves. `name`: of the checkpoint, one for each training of a method.

    `hooks` are told `model`, without the layer that a hint adds to it.
    """
    stream = stream_seed(settings.seed, "recovery")
    batches = batches_of(settings, inputs, stream)
    plan = Plan(settings.epochs, recovery_steps(settings, inputs) // settings.epochs, settings.optimiser, stream)
    teacher = _teacher(settings, inputs)
    guide = _still(load_backbone(inputs.pretrained)) if settings.hint == "pretrained" else teacher
    trained = with_translation(model, settings, guide)
    loss = distillation(settings, inputs.images.image_size, teacher, guide)
    inner = Hooks(lambda _, step: hooks.after_backward(model, step), lambda _, step: hooks.after_step(model, step))
    curves = drain(fit(trained, batches, loss, plan, Checkpoint(inputs.scratch, name), inner))
    model.cpu().eval()
    return curves


def batches_of(settings: Recovery, inputs: Inputs, stream: int) -> BatchSource:
    """Return the batches of a recovery: all images, and labelled ones at the end of each batch where not all are."""
    images = inputs.images
    chosen = images.indices(TRAIN) if settings.images == "all" else inputs.budget
    labelled = chosen[inputs.labels_N[chosen] >= 0]
    count = labelled_in_batch(settings.batch_size) if 0 < len(labelled) < len(chosen) else 0

    def part(indices: NDArray[np.int64], size: int, seed: int) -> Batches:
        return Batches(images.training_NHWC, inputs.labels_N, indices, size, seed)

    pool = part(chosen, settings.batch_size - count, stream)
    return JoinedBatches(pool, part(labelled, count, stream_seed(stream, "labelled"))) if count else pool


def labelled_in_batch(batch_size: int) -> int:
    """Return how many images of a batch are drawn from the labelled ones, where some have no label."""
    return min(batch_size - 1, max(1, round(batch_size * LABELLED_SHARE)))  # a batch of one has no place for it


def _teacher(settings: Recovery, inputs: Inputs) -> nn.Module | None:
    if settings.teacher != "dense":
        return None
    network = _still(load_model(inputs.dense)[0])
    if inputs.answers is None or not is_recalled(settings):
        return network
    return CachedTeacher(network, inputs.answers, record_digest(inputs.dense))


def recovery_steps(settings: Recovery, inputs: Inputs) -> int:
    """Return the steps of a recovery: its epochs count passes over all training images, whichever of them it uses."""
    return settings.steps_for(len(inputs.images.indices(TRAIN)))


def with_translation(model: nn.Module, settings: Recovery, guide: nn.Module | None) -> nn.Module:
    """What is trained: the student, with a layer that translates its features where a hint compares them."""
    if settings.hint not in ("features", "pretrained"):
        return model
    assert guide is not None
    return FeatureProjector(model, feature_dim(guide), settings.seed)


def _still(model: nn.Module) -> nn.Module:
    """A network that answers and does not learn, where the student is."""
    return model.to(device()).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def distillation(settings: Recovery, side: int, teacher: nn.Module | None, guide: nn.Module | None = None) -> Loss:
    """The loss above as a function of (student, images, labels); label -1: unlabelled.

    `side`: of the views, pixels. `guide`: gives the hints.
    """

    def loss(model: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        views_BCHW = augment(images_BCHW, settings.augmentation, side)
        guide_BC = gap = None
        if settings.hint == "none":
            student_BC = model(views_BCHW).float()
        else:
            assert guide is not None
            student_BC, guide_BC, gap = HINTS[settings.hint](model, guide, views_BCHW)
        hint = 0.0 if gap is None else settings.hint_weight * gap
        if teacher is None:
            return F.cross_entropy(student_BC, labels_B) + hint
        if teacher is guide and guide_BC is not None:
            teacher_BC = guide_BC
        else:
            with torch.no_grad():
                teacher_BC = teacher(views_BCHW).float()
        taught = softened_kl(student_BC, teacher_BC, settings.temperature)
        told = labelled_cross_entropy(student_BC, labels_B)
        return settings.teacher_weight * taught + (1 - settings.teacher_weight) * told + hint

    return loss


def softened_kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student), mean over the batch, scalar."""
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def labelled_cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy, mean over the labelled images of the batch, scalar; 0 without any (label -1: none)."""
    known = (labels_B >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits_BC, labels_B, ignore_index=-1, reduction="sum") / known
