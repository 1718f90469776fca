"""Write the files of an untrained candidate."""

from __future__ import annotations

from pathlib import Path

from winnow.deploy.onnx_export import export_onnx
from winnow.models.backbones import Architecture, build_model, save_model


def make_candidate(folder: Path) -> Path:
    """Write the files of a candidate that runtimes open: an untrained network of three classes, 16x16 pixels."""
    folder.mkdir()
    architecture = Architecture(backbone="resnet8", num_classes=3, image_size=16)
    model = build_model(architecture, seed=1)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / "model.onnx")
    return folder
