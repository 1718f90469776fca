"""Distillation: a smaller student learns to answer as the dense network does (winnow/compression/recovery.py).

`student: same` trains the parent itself on, with the same recovery as the others: the control that says how much of a
child's accuracy came from longer training. `teacher: none` trains a student on labels alone: the control that says
what the teacher bought.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.compression.method_inputs import Inputs
from winnow.compression.recovery import recover
from winnow.config import Distill
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.models.backbones import build, load_model, save_model
from winnow.random_streams import stream_seed


def distill(settings: Distill, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Train the student and leave weights, architecture and model.onnx in `folder` -> details."""
    model, architecture = load_model(inputs.parent)
    if settings.student != "same":
        architecture = architecture.model_copy(
            update={"backbone": settings.student, "width": settings.width, "pruning": [], "ranks": {}}
        )
        model = build(architecture, seed=stream_seed(settings.recovery.seed, "student"))
    curves = recover(model, settings.recovery, inputs)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    return {"curves": curves, "teacher": settings.recovery.teacher}
