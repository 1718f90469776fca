from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from winnow.compression import write_candidate
from winnow.compression.cluster import share_values
from winnow.compression.method_inputs import MethodInputs
from winnow.config import Cluster
from winnow.deploy.onnx_export import zipped_bytes
from winnow.models.backbones import load_model

RECOVERY = {"epochs": 2, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.02}}


def settings(**changes: Any) -> Cluster:
    fields = {"from": "dense", "method": "cluster", "values": 8, "recovery": RECOVERY, **changes}
    return Cluster.model_validate(fields)


def value_counts(model: nn.Module) -> dict[str, int]:
    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {f"{path}.weight": len(torch.unique(layer.weight)) for path, layer in layers.items()}


@pytest.mark.parametrize("count", [2, 5, 16])
def test_each_weight_gets_the_nearest_value(count: int) -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    clustered = weight.clone()
    share_values(clustered, count, 0)
    values = torch.unique(clustered)
    assert len(values) == count
    nearest = (weight.flatten()[:, None] - values).abs().amin(1)
    torch.testing.assert_close((weight - clustered).abs().flatten(), nearest, rtol=1e-4, atol=1e-5)
    # Lloyd's algorithm has ended: every value is the mean of its weights.
    for value in values:
        assert float(weight[clustered == value].mean()) == pytest.approx(float(value), abs=0.02)


def test_more_values_are_nearer_and_few_stay_as_they_are() -> None:
    weight = torch.randn(500, generator=torch.Generator().manual_seed(1))
    errors = []
    for count in (2, 8, 32):
        clustered = weight.clone()
        share_values(clustered, count, 0)
        errors.append(float((clustered - weight).square().mean()))
    assert errors == sorted(errors, reverse=True)
    weights = torch.tensor([0.5, -1.0, 0.5, 2.0])
    expected = weights.clone()
    share_values(weights, 3, 0)
    assert torch.equal(weights, expected)


@pytest.mark.thorough
def test_method_keeps_the_clusters_and_learns_the_values(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(), tiny_inputs, tmp_path)
    clustered, _ = load_model(tmp_path)
    dense, _ = load_model(tiny_inputs.parent.folder)
    assert value_counts(clustered) == details.values
    assert set(value_counts(clustered).values()) == {8}
    initial = dense.blocks[1].conv1.weight.detach().clone()
    share_values(initial, 8, 0)
    trained = clustered.blocks[1].conv1.weight.detach()
    assert not torch.equal(torch.unique(trained), torch.unique(initial))
    # The clusters are unchanged.
    groups = [np.unique(weight.numpy().ravel(), return_inverse=True)[1] for weight in (initial, trained)]
    pairs = set(zip(*(weight.tolist() for weight in groups), strict=True))
    assert len(pairs) == 8


@pytest.mark.thorough
def test_only_the_zipped_file_gets_smaller(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    write_candidate(settings(values=4), tiny_inputs, tmp_path)
    files = (tiny_inputs.dense.folder / "model.onnx", tmp_path / "model.onnx")
    sizes, zipped_sizes = [file.stat().st_size for file in files], [zipped_bytes(file) for file in files]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert zipped_sizes[1] < 0.3 * zipped_sizes[0]


@pytest.mark.thorough
def test_a_training_that_was_stopped_ends_the_same(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    uninterrupted, resumed = tmp_path / "whole", tmp_path / "again"
    for folder in (uninterrupted, resumed):
        folder.mkdir()
    write_candidate(settings(), dataclasses.replace(tiny_inputs, scratch=tmp_path / "apart"), uninterrupted)
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)
    shared_values = sys.modules["winnow.compression.cluster"]._SharedValues
    average_weights, steps = shared_values.average_weights, []

    def stop_at_fourth_step(self: Any, model: nn.Module, step: int) -> None:
        steps.append(step)
        if len(steps) == 4:
            raise Stopped
        average_weights(self, model, step)

    monkeypatch.setattr(shared_values, "average_weights", stop_at_fourth_step)
    with pytest.raises(Stopped):
        write_candidate(settings(), tiny_inputs, resumed)
    write_candidate(settings(), tiny_inputs, resumed)
    assert steps[3:5] == [4, 4]
    assert (uninterrupted / "weights.safetensors").read_bytes() == (resumed / "weights.safetensors").read_bytes()
