"""Distillation: train a smaller student on the outputs of the dense network (winnow/compression/recovery.py).

Two settings are controls. `student: same` trains the parent itself further with the same recovery as the other
candidates: it shows how much accuracy comes from longer training. `teacher: none` trains a student on labels alone: it
shows how much comes from the teacher.
"""

from __future__ import annotations

from pathlib import Path

from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover
from winnow.config import Distill
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.models.backbones import build_model, load_model, save_model
from winnow.random_streams import stream_seed
from winnow.records.candidate import DistillResult


def distill(settings: Distill, inputs: MethodInputs, folder: Path) -> DistillResult:
    """Train the student, write weights, architecture and model.onnx to `folder`, and return the result."""
    model, architecture = load_model(inputs.parent)
    if settings.student != "same":
        architecture = architecture.model_copy(
            update={"backbone": settings.student, "width": settings.width, "pruning": [], "ranks": {}}
        )
        model = build_model(architecture, seed=stream_seed(settings.recovery.seed, "student"))
    curves = recover(model, settings.recovery, inputs)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    return DistillResult(curves=curves, teacher=settings.recovery.teacher)
