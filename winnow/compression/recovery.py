"""Training after a change of structure: the dense network teaches, on images with and without labels.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015, arXiv 1503.02531). The loss is

    w * T^2 * KL(teacher at temperature T || student at temperature T) + (1 - w) * cross-entropy on labelled images

The teacher sees the very view that the student sees (Beyer et al. 2022, arXiv 2106.05237, "function matching"), so
unlabelled images teach as well as labelled ones. Without a teacher it is cross-entropy on the label budget alone, for
the same number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from winnow.compression.inputs import Inputs
from winnow.config import Recovery
from winnow.data.batches import Batches
from winnow.data.images import TRAIN
from winnow.data.views import augment
from winnow.models.backbones import load_model
from winnow.training import Checkpoint, Loss, Plan, Row, device, drain, fit


def recover(
    model: nn.Module,
    settings: Recovery,
    inputs: Inputs,
    after_step: Callable[[nn.Module], None] | None = None,
) -> list[Row]:
    """Train `model` in place and return its curves. `after_step` may hold masks in place."""
    images = inputs.images
    everything = images.indices(TRAIN)
    chosen = everything if settings.images == "all" else inputs.budget
    batches = Batches(images.images_NHWC, inputs.labels_N, chosen, settings.batch_size, settings.seed)
    steps_per_epoch = max(1, len(everything) // settings.batch_size)
    plan = Plan(settings.epochs, steps_per_epoch, settings.optimiser, settings.seed)
    teacher = None
    if settings.teacher == "dense":
        teacher = load_model(inputs.dense)[0].to(device()).to(memory_format=torch.channels_last).requires_grad_(False)
    training = fit(
        model, batches, distillation(settings, teacher), plan, Checkpoint(inputs.scratch, "recovery"), after_step
    )
    curves = drain(training)
    model.cpu().eval()
    return curves


def distillation(settings: Recovery, teacher: nn.Module | None) -> Loss:
    """The loss above as a function of (student, images, labels); label -1: unlabelled."""

    def loss(model: nn.Module, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        views_BCHW = augment(images_BCHW, settings.augmentation)
        student_BC = model(views_BCHW).float()
        if teacher is None:
            return F.cross_entropy(student_BC, labels_B)
        with torch.no_grad():
            teacher_BC = teacher(views_BCHW).float()
        taught = softened_kl(student_BC, teacher_BC, settings.temperature)
        told = labelled_cross_entropy(student_BC, labels_B)
        return settings.teacher_weight * taught + (1 - settings.teacher_weight) * told

    return loss


def softened_kl(student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student), mean over the batch, scalar."""
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def labelled_cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the labelled images and divided by the whole batch, scalar; 0 without any.

    Dividing by the batch keeps the weight of a labelled image the same, however many of them a batch happens to hold.
    """
    return F.cross_entropy(logits_BC, labels_B, ignore_index=-1, reduction="sum") / len(labels_B)
