from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from winnow.compression import write_candidate
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover
from winnow.compression.sparsify import apply_masks, group_masks, magnitude_masks, scheduled_sparsity
from winnow.config import Recovery, Sparsify
from winnow.deploy.onnx_export import inspect_onnx
from winnow.errors import ConfigError
from winnow.models.backbones import load_model
from winnow.records import read_record
from winnow.training.loop import Hooks

RECOVERY = {"epochs": 1, "min_steps": 1, "batch_size": 16, "optimiser": {"learning_rate": 0.05}}


def settings(sparsity: float, **changes: Any) -> Sparsify:
    fields = {"from": "dense", "method": "sparsify", "sparsity": sparsity, "recovery": RECOVERY, **changes}
    return Sparsify.model_validate(fields)


def maskable_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights and biases of convolutions and linear layers."""
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    return {name: value for name, value in model.named_parameters() if name.rpartition(".")[0] not in norms}


def count_zeros(model: nn.Module) -> int:
    return sum(int((value == 0).sum()) for value in maskable_parameters(model).values())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_the_share_is_exact_and_the_smallest_weights_are_removed(tiny_dense: Path, sparsity: float) -> None:
    model, _ = load_model(tiny_dense)
    masks = magnitude_masks(model, sparsity)
    values = {name: value.detach().clone() for name, value in maskable_parameters(model).items()}
    total = sum(value.numel() for value in values.values())
    apply_masks(model, masks)
    assert set(masks) == set(values)
    assert count_zeros(model) == round(sparsity * total)
    removed = torch.cat([values[name].abs()[~mask] for name, mask in masks.items()])
    remaining = torch.cat([values[name].abs()[mask] for name, mask in masks.items()])
    assert removed.max() <= remaining.min()
    # The threshold is the quantile of all magnitudes.
    magnitudes = torch.cat([value.abs().flatten() for value in values.values()])
    assert float(removed.max()) == pytest.approx(float(magnitudes.quantile(sparsity)), rel=1e-3)


def test_remaining_weights_and_norms_are_unchanged(tiny_dense: Path) -> None:
    (model, _), (original, _) = load_model(tiny_dense), load_model(tiny_dense)
    masks = magnitude_masks(model, 0.5)
    apply_masks(model, masks)
    for name, value in original.named_parameters():
        expected = value * masks[name] if name in masks else value
        assert torch.equal(model.get_parameter(name), expected)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apply_masks(model, masks)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_biases_are_masked(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([1e-9, 5.0, -1e-9]))
    masks = magnitude_masks(model, 0.01)
    assert masks["fc.bias"].tolist() == [False, True, False]
    apply_masks(model, masks)
    assert model.fc.bias.tolist() == [0.0, 5.0, 0.0]


def test_masks_of_a_higher_sparsity_contain_those_of_a_lower(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    low_masks, high_masks = magnitude_masks(model, 0.4), magnitude_masks(model, 0.8)
    assert all(bool((low_masks[name] | ~high_masks[name]).all()) for name in low_masks)
    repeated = magnitude_masks(model, 0.4)
    assert all(torch.equal(low_masks[name], repeated[name]) for name in low_masks)


def test_equal_magnitudes_are_ordered_by_position() -> None:
    model = nn.Sequential(nn.Linear(5, 2))
    nn.init.constant_(model[0].weight, 0.5)
    nn.init.constant_(model[0].bias, -0.5)
    assert sum(int((~mask).sum()) for mask in magnitude_masks(model, 0.25).values()) == 3


def test_masks_hold_at_every_step_of_recovery(tiny_inputs: MethodInputs) -> None:
    model, _ = load_model(tiny_inputs.parent.folder)
    masks = magnitude_masks(model, 0.7)
    apply_masks(model, masks)
    expected, zero_counts = count_zeros(model), []

    def count_and_mask(trained: nn.Module, _step: int) -> None:
        before_masking = count_zeros(trained)
        apply_masks(trained, masks)
        zero_counts.append((before_masking, count_zeros(trained)))

    recover(model, Recovery.model_validate(RECOVERY), tiny_inputs, hooks=Hooks(after_step=count_and_mask))
    assert [after_masking for _, after_masking in zero_counts] == [expected] * 7
    # Without the masks the zeros would be gone after one step.
    assert zero_counts[0][0] < 0.1 * expected


@pytest.mark.thorough
def test_method_keeps_the_zeros(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    dense, _ = load_model(tiny_inputs.parent.folder)
    masks = magnitude_masks(dense, 0.7)
    details = write_candidate(settings(0.7), tiny_inputs, tmp_path)
    sparse, _ = load_model(tmp_path)
    total = sum(value.numel() for value in maskable_parameters(sparse).values())
    assert count_zeros(sparse) == round(0.7 * total)
    assert all(bool((value[~masks[name]] == 0).all()) for name, value in maskable_parameters(sparse).items())
    assert details.masked_share == pytest.approx(0.7, abs=1e-5)
    assert inspect_onnx(tmp_path / "model.onnx").zeros == pytest.approx(count_zeros(sparse), abs=3)
    assert any(not torch.equal(value, dense.get_parameter(name)) for name, value in sparse.named_parameters())


@pytest.mark.thorough
def test_only_the_zipped_file_gets_smaller(tiny_dense: Path, tiny_candidate: Callable[[str], Path]) -> None:
    dense, sparse = (read_record(folder).metrics for folder in (tiny_dense, tiny_candidate("sparse")))
    assert sparse["size/mb"] == pytest.approx(dense["size/mb"], rel=0.01)
    assert sparse["size/zipped_mb"] < 0.7 * dense["size/zipped_mb"]
    assert sparse["compute/macs"] == dense["compute/macs"]
    assert sparse["size/parameters"] == dense["size/parameters"]
    assert sparse["size/nonzero_parameters"] == pytest.approx(0.5 * dense["size/nonzero_parameters"], rel=0.01)


@pytest.mark.parametrize("sparsity", [0, 1, -0.1, 1.5])
def test_all_and_nothing_are_refused(sparsity: float) -> None:
    with pytest.raises(ValidationError, match="sparsity"):
        settings(sparsity)


@pytest.mark.parametrize(("remaining", "group"), [(2, 4), (1, 4), (4, 8)])
def test_n_of_m_masks_keep_the_largest_along_the_inputs(tiny_dense: Path, remaining: int, group: int) -> None:
    model, _ = load_model(tiny_dense)
    masks = group_masks(model, group, 1 - remaining / group)
    assert "stem.0.weight" not in masks  # three input channels
    assert {name.rpartition(".")[2] for name in masks} == {"weight"}
    for name, mask in masks.items():
        rows = mask.movedim(1, -1).reshape(-1, group)
        weights = model.get_parameter(name).detach().movedim(1, -1).reshape(-1, group).abs()
        assert set(rows.sum(1).tolist()) == {remaining}
        smallest_kept = weights.masked_fill(~rows, torch.inf).amin(1)
        assert bool((weights.masked_fill(rows, 0).amax(1) <= smallest_kept).all())


@pytest.mark.thorough
def test_method_keeps_n_of_m(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(0.5, pattern="2:4"), tiny_inputs, tmp_path)
    sparse, _ = load_model(tmp_path)
    weight = sparse.blocks[1].conv2.weight.movedim(1, -1).reshape(-1, 4)
    assert set((weight != 0).sum(1).tolist()) == {2}
    assert details.dense_layers == ["stem.0"]
    assert details.masked_share == 0.5


def test_the_schedule_is_that_of_zhu_and_gupta() -> None:
    shares = [scheduled_sparsity(0.8, step / 10) for step in range(13)]
    assert shares[0] == 0
    assert shares[5] == pytest.approx(0.8 * (1 - 0.5**3))
    assert shares[10:] == [0.8] * 3
    assert shares == sorted(shares)


@pytest.mark.thorough
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_gradual_schedule_reaches_the_sparsity(tiny_inputs: MethodInputs, tmp_path: Path, pattern: str) -> None:
    details = write_candidate(settings(0.5, pattern=pattern, schedule="gradual"), tiny_inputs, tmp_path)
    assert details.masked_share == pytest.approx(0.5, abs=1e-5)
    sparse, _ = load_model(tmp_path)
    # Weights differ from those of masks at once: they had more steps to adapt.
    (tmp_path / "once").mkdir()
    other_inputs = dataclasses.replace(tiny_inputs, scratch=tmp_path / "other")
    write_candidate(settings(0.5, pattern=pattern), other_inputs, tmp_path / "once")
    at_once, _ = load_model(tmp_path / "once")
    assert not torch.equal(sparse.blocks[1].conv2.weight, at_once.blocks[1].conv2.weight)


@pytest.mark.slow
def test_a_gradual_training_that_was_stopped_ends_the_same(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    config = settings(0.6, schedule="gradual", recovery={**RECOVERY, "epochs": 4})
    uninterrupted, resumed = tmp_path / "whole", tmp_path / "again"
    for folder in (uninterrupted, resumed):
        folder.mkdir()
    write_candidate(config, dataclasses.replace(tiny_inputs, scratch=tmp_path / "apart"), uninterrupted)
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)

    calls: list[int] = []
    module = sys.modules["winnow.compression.sparsify"]  # in the package, this name is the function
    apply_schedule = module._MaskSchedule.apply

    def stop_at_step_11(self: Any, model: nn.Module, step: int) -> None:
        calls.append(step)
        if len(calls) == 11:
            raise Stopped
        apply_schedule(self, model, step)

    monkeypatch.setattr(module._MaskSchedule, "apply", stop_at_step_11)
    with pytest.raises(Stopped):
        write_candidate(config, tiny_inputs, resumed)
    write_candidate(config, tiny_inputs, resumed)
    assert calls[10:12] == [11, 11]  # it resumed at the same step
    assert (uninterrupted / "weights.safetensors").read_bytes() == (resumed / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.8}, "2:4 makes 0.5 of the weights zero"),
        ({"pattern": "4:4"}, "sets no weight to zero"),
        ({"pattern": "half"}, "should match pattern"),
        ({"pattern": 124}, "YAML reads N:M without quotes as a number, here 124; write it in quotes"),
    ],
)
def test_invalid_patterns_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**{"sparsity": 0.5, **changes})


def test_a_rounded_sparsity_matches_its_pattern() -> None:
    assert settings(0.6667, pattern="1:3").group == 3


def test_a_pattern_without_a_matching_layer_is_refused_before_training(
    tiny_inputs: MethodInputs, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"1:5 fits no layer.*multiple of 5; this network's layers have 3, 48, 96"):
        write_candidate(settings(0.8, pattern="1:5"), tiny_inputs, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("schedule", ["once", "gradual"])
@pytest.mark.parametrize("hint", ["features", "attention"])
def test_the_layer_of_a_hint_is_not_masked(tiny_inputs: MethodInputs, tmp_path: Path, schedule: str, hint: str) -> None:
    config = settings(0.5, schedule=schedule, recovery={**RECOVERY, "hint": hint})
    write_candidate(config, tiny_inputs, tmp_path)
    model, _ = load_model(tmp_path)
    assert count_zeros(model) == round(0.5 * sum(value.numel() for value in maskable_parameters(model).values()))
