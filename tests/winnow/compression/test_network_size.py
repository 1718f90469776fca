from __future__ import annotations

from pathlib import Path

import pytest

from winnow.compression.channel_importance import Criterion
from winnow.compression.channel_pruning import PruningStep, min_channels_by_layer, remove_channels
from winnow.compression.network_size import count_macs
from winnow.deploy.onnx_export import export_onnx, inspect_onnx
from winnow.models.backbones import load_model


@pytest.mark.thorough
def test_multiply_adds_equal_those_of_the_file(tiny_dense: Path, tmp_path: Path) -> None:
    model, architecture = load_model(tiny_dense)
    step = PruningStep(0.3, Criterion("magnitude", 0), 8, min_channels_by_layer(model, 0.75))
    pruned = remove_channels(model, architecture, step)
    export_onnx(model.eval(), pruned, tmp_path / "model.onnx")
    assert count_macs(model, pruned) == inspect_onnx(tmp_path / "model.onnx").macs
