"""Distillation: train a smaller student on the outputs of the dense network (winnow/compression/recovery.py).

Two settings are controls. `student: same` trains the parent itself further with the same recovery as the other
candidates: it shows how much accuracy comes from longer training. `teacher: none` trains a student on labels alone: it
shows how much comes from the teacher.
"""

from __future__ import annotations

from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover
from winnow.config import Distill
from winnow.models.backbones import build_model
from winnow.models.network import Network
from winnow.random_streams import stream_seed
from winnow.records.candidate import DistillResult


def distill(settings: Distill, inputs: MethodInputs) -> tuple[Network, DistillResult]:
    """Train the student; return it and what was done."""
    parent = inputs.parent.load()
    model, architecture = parent.model, parent.architecture
    if settings.student != "same":
        architecture = architecture.model_copy(
            update={"backbone": settings.student, "width": settings.width, "pruning": [], "ranks": {}, "input": None}
        )
        model = build_model(architecture, seed=stream_seed(settings.recovery.seed, "student"))
    curves = recover(model, settings.recovery, inputs)
    return Network(model, architecture), DistillResult(curves=curves, teacher=settings.recovery.teacher)
