"""Distillation: train a smaller student on the outputs of a larger network (winnow/compression/recovery.py).

Two settings are controls. `student: same` trains the parent itself further with the same recovery as the other
candidates: it shows how much accuracy comes from longer training. `teacher: none` trains a student on labels alone: it
shows how much comes from the teacher.
"""

from __future__ import annotations

from torch import nn

from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover
from winnow.config import Distill
from winnow.models.backbones import build_model
from winnow.models.classifier_head import backbone_weights
from winnow.models.image_size_check import check_image_size
from winnow.models.network import Network
from winnow.models.state_loading import load_state
from winnow.random_streams import stream_seed
from winnow.records.method_results import DistillResult, Start


def distill(settings: Distill, inputs: MethodInputs) -> tuple[Network, DistillResult]:
    """Train the student; return it and what was done.

    Raises ConfigError for a student that cannot take images of this size.
    """
    parent = inputs.parent.load()
    start: Start = "parent"
    model, architecture = parent.model, parent.architecture
    if settings.student != "same":
        start = "random"
        architecture = architecture.model_copy(
            update={"backbone": settings.student, "width": settings.width, "pruning": [], "ranks": {}, "input": None}
        )
        check_image_size(architecture, "candidates: method distill: student")
        model = build_model(architecture, seed=stream_seed(settings.recovery.seed, "student"))
        if settings.start == "auto" and inputs.load_backbone and copy_backbone(inputs.load_backbone(), model):
            start = "pretrain"
    curves = recover(model, settings.recovery, inputs)
    return Network(model, architecture), DistillResult(curves=curves, start=start)


def copy_backbone(source: nn.Module, target: nn.Module) -> bool:
    """Copy all weights but the head's into `target` if both have the same names and shapes; return whether they do."""
    weights, state = backbone_weights(source), target.state_dict()
    own = backbone_weights(target)
    if weights.keys() != own.keys() or any(weights[name].shape != own[name].shape for name in own):
        return False
    load_state(target, state | weights)
    return True
