from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from winnow.compression import write_candidate
from winnow.compression.fake_quantization import (
    RANGE_BUFFER,
    FakeQuantizedWeight,
    fake_quantize_activation,
    simulated_int8,
)
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover
from winnow.config import Quantize, Recovery
from winnow.models.backbones import load_model


def quantize_by_channel(weight: np.ndarray) -> np.ndarray:
    """Return round(w / s) s with s = max |w| / 127, channel by channel."""
    rows = []
    for row in weight.reshape(len(weight), -1).astype(np.float64):
        scale = np.abs(row).max() / 127
        rows.append(np.round(row / scale) * scale)
    return np.stack(rows).reshape(weight.shape)


def test_weights_are_rounded_by_channel() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[2] *= 100  # the scale of another channel does not matter
    rounded = FakeQuantizedWeight()(weight)
    np.testing.assert_allclose(rounded.numpy(), quantize_by_channel(weight.numpy()), rtol=1e-4, atol=1e-4)
    assert all(len(torch.unique(channel)) <= 255 for channel in rounded)
    torch.testing.assert_close(FakeQuantizedWeight()(rounded), rounded)


def test_seven_bit_weights_equal_those_of_the_file(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    """The reference is the head in NNCF's file, which has no batch normalisation to fold."""
    settings = {"from": "dense", "method": "quantize", "calibration_images": 8, "overflow_safe": True}
    write_candidate(Quantize.model_validate(settings), tiny_inputs, tmp_path)
    model, _ = load_model(tiny_inputs.parent.folder)
    layer = next(tensor for tensor in model.modules() if isinstance(tensor, nn.Linear))
    graph = onnx.load(tmp_path / "model.onnx").graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    head = next(node for node in nodes if node.input[0] in arrays and arrays[node.input[0]].shape == layer.weight.shape)
    stored_weight, scale, _ = (arrays[name] for name in head.input)
    with simulated_int8(model, overflow_safe=True):
        rounded = layer.weight.detach().numpy()
    # A channel's largest weight lies half-way between two of its 63.5 steps: rounding may take either.
    steps = layer.weight.detach().numpy() / scale[:, None]
    is_tie = np.abs(np.abs(steps) % 1 - 0.5) < 1e-3
    difference = np.abs(rounded / scale[:, None] - stored_weight)
    assert difference[~is_tie].max() < 1e-2
    assert difference[is_tie].max(initial=0.0) < 1.01
    depthwise, dense = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)
    with simulated_int8(nn.Sequential(depthwise, dense), overflow_safe=True):
        steps = [layer.parametrizations["weight"][0].steps for layer in (depthwise, dense)]  # type: ignore[union-attr,index]
    assert steps == [127, 63.5]


def test_a_batch_normalisation_scale_does_not_change_the_grid() -> None:
    """Folding the scale into the weights afterwards therefore gives the same grid."""
    weight, scale = torch.randn(5, 8), torch.tensor([0.1, 3.0, 1.0, 20.0, 0.5])[:, None]
    torch.testing.assert_close(
        FakeQuantizedWeight()(weight * scale), FakeQuantizedWeight()(weight) * scale, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 5.0), (-2.0, 3.0), (1.0, 4.0)])
def test_activations_keep_zero_and_change_by_half_a_step_at_most(low: float, high: float) -> None:
    x = torch.linspace(low, high, 1001)
    rounded = fake_quantize_activation(x, torch.tensor(low), torch.tensor(high))
    step = (high - min(low, 0.0)) / 255
    assert (
        float((rounded - x).abs().max()) <= step * 0.51 + step * 0.5
    )  # half a step, and as much at the end of the grid
    assert float(fake_quantize_activation(torch.zeros(1), torch.tensor(low), torch.tensor(high))) == 0
    assert len(torch.unique(rounded)) <= 256
    assert float(fake_quantize_activation(torch.tensor([1e6]), torch.tensor(low), torch.tensor(high))) == pytest.approx(
        high, abs=step
    )


def test_gradients_pass_straight_through() -> None:
    layer = nn.Linear(4, 3)
    x = torch.rand(5, 4)
    with simulated_int8(nn.Sequential(layer)) as model:
        model.train()(x).sum().backward()
        gradient = layer.parametrizations["weight"].original.grad
    torch.testing.assert_close(gradient, x.sum(0).expand(3, 4), rtol=0.02, atol=0.02)


def test_the_network_is_restored_afterwards(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    state_before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 3, 16, 16)
    expected = model(x).detach()
    with simulated_int8(model):
        model.train()(x)
        model.eval()
        rounded = model(x).detach()
        assert RANGE_BUFFER in dict(model.stem[0].named_buffers())
    assert 0 < float((rounded - expected).abs().max()) < 0.3 * float(expected.abs().max())
    state_after = model.state_dict()
    assert state_after.keys() == state_before.keys()
    assert all(
        torch.equal(state_after[name], state_before[name])
        for name in state_before
        if "running" not in name and "num_" not in name
    )
    assert not model.stem[0]._forward_pre_hooks


def test_the_network_is_restored_if_training_fails(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    names = set(model.state_dict())
    with pytest.raises(ZeroDivisionError), simulated_int8(model):
        raise ZeroDivisionError
    assert set(model.state_dict()) == names


def test_ranges_are_updated_in_training_only() -> None:
    layer = nn.Linear(2, 2)
    with simulated_int8(nn.Sequential(layer)) as model:
        model.train()(torch.tensor([[0.0, 4.0]]))
        assert getattr(layer, RANGE_BUFFER).tolist() == [0.0, 4.0]
        model(torch.tensor([[-1.0, 8.0]]))
        np.testing.assert_allclose(getattr(layer, RANGE_BUFFER).tolist(), [-0.05, 4.2], rtol=1e-5)
        model.eval()(torch.tensor([[-100.0, 100.0]]))
        np.testing.assert_allclose(getattr(layer, RANGE_BUFFER).tolist(), [-0.05, 4.2], rtol=1e-5)


@pytest.mark.thorough
def test_a_training_that_was_stopped_ends_the_same(tiny_inputs: MethodInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    recovery = Recovery.model_validate(
        {"epochs": 3, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.02}}
    )
    uninterrupted, _ = load_model(tiny_inputs.parent.folder)
    with simulated_int8(uninterrupted):
        recover(
            uninterrupted, recovery, dataclasses.replace(tiny_inputs, scratch=tiny_inputs.scratch / "whole"), "rounding"
        )
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)
    from winnow.training.loop import Hooks

    class Stopped(Exception):
        pass

    def stop(_model: nn.Module, step: int) -> None:
        if step == 5:
            raise Stopped

    interrupted, _ = load_model(tiny_inputs.parent.folder)
    with pytest.raises(Stopped), simulated_int8(interrupted):
        recover(interrupted, recovery, tiny_inputs, "rounding", Hooks(after_step=stop))
    resumed, _ = load_model(tiny_inputs.parent.folder)
    with simulated_int8(resumed):
        recover(resumed, recovery, tiny_inputs, "rounding")
    pairs: Any = zip(uninterrupted.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(expected, actual) for expected, actual in pairs)
