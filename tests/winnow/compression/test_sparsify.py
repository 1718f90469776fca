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


def masked(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases of convolutions and linear layers."""
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    return {name: value for name, value in model.named_parameters() if name.rpartition(".")[0] not in norms}


def zeros(model: nn.Module) -> int:
    return sum(int((value == 0).sum()) for value in masked(model).values())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_share_is_exact_and_the_smallest_go(tiny_dense: Path, sparsity: float) -> None:
    model, _ = load_model(tiny_dense)
    masks = magnitude_masks(model, sparsity)
    values = {name: value.detach().clone() for name, value in masked(model).items()}
    total = sum(value.numel() for value in values.values())
    apply_masks(model, masks)
    assert set(masks) == set(values)
    assert zeros(model) == round(sparsity * total)
    gone = torch.cat([values[name].abs()[~mask] for name, mask in masks.items()])
    left = torch.cat([values[name].abs()[mask] for name, mask in masks.items()])
    assert gone.max() <= left.min()
    # numpy's quantile of all magnitudes is where the cut lies.
    everything = torch.cat([value.abs().flatten() for value in values.values()])
    assert float(gone.max()) == pytest.approx(float(everything.quantile(sparsity)), rel=1e-3)


def test_what_stays_is_untouched_and_norms_too(tiny_dense: Path) -> None:
    (model, _), (before, _) = load_model(tiny_dense), load_model(tiny_dense)
    masks = magnitude_masks(model, 0.5)
    apply_masks(model, masks)
    for name, value in before.named_parameters():
        expected = value * masks[name] if name in masks else value
        assert torch.equal(model.get_parameter(name), expected)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    apply_masks(model, masks)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())


def test_biases_are_masked(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([1e-9, 5.0, -1e-9]))
    masks = magnitude_masks(model, 0.01)
    assert masks["fc.bias"].tolist() == [False, True, False]
    apply_masks(model, masks)
    assert model.fc.bias.tolist() == [0.0, 5.0, 0.0]


def test_sparser_takes_more_of_the_same(tiny_dense: Path) -> None:
    model, _ = load_model(tiny_dense)
    little, much = magnitude_masks(model, 0.4), magnitude_masks(model, 0.8)
    assert all(bool((little[name] | ~much[name]).all()) for name in little)
    again = magnitude_masks(model, 0.4)
    assert all(torch.equal(little[name], again[name]) for name in little)


def test_equal_magnitudes_are_told_apart_by_their_place() -> None:
    model = nn.Sequential(nn.Linear(5, 2))
    nn.init.constant_(model[0].weight, 0.5)
    nn.init.constant_(model[0].bias, -0.5)
    assert sum(int((~mask).sum()) for mask in magnitude_masks(model, 0.25).values()) == 3


def test_masks_hold_at_every_step_of_recovery(tiny_inputs: MethodInputs) -> None:
    model, _ = load_model(tiny_inputs.parent.folder)
    masks = magnitude_masks(model, 0.7)
    apply_masks(model, masks)
    expected, seen = zeros(model), []

    def hold(trained: nn.Module, _step: int) -> None:
        moved = zeros(trained)
        apply_masks(trained, masks)
        seen.append((moved, zeros(trained)))

    recover(model, Recovery.model_validate(RECOVERY), tiny_inputs, hooks=Hooks(after_step=hold))
    assert [held for _, held in seen] == [expected] * 7
    # Without the masks the zeros would be gone after one step.
    assert seen[0][0] < 0.1 * expected


@pytest.mark.thorough
def test_method_keeps_the_zeros(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    dense, _ = load_model(tiny_inputs.parent.folder)
    masks = magnitude_masks(dense, 0.7)
    details = write_candidate(settings(0.7), tiny_inputs, tmp_path)
    sparse, _ = load_model(tmp_path)
    total = sum(value.numel() for value in masked(sparse).values())
    assert zeros(sparse) == round(0.7 * total)
    assert all(bool((value[~masks[name]] == 0).all()) for name, value in masked(sparse).items())
    assert details.masked_share == pytest.approx(0.7, abs=1e-5)
    assert inspect_onnx(tmp_path / "model.onnx").zeros == pytest.approx(zeros(sparse), abs=3)
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


@pytest.mark.parametrize(("stay", "group"), [(2, 4), (1, 4), (4, 8)])
def test_of_every_m_weights_along_the_inputs_the_n_largest_stay(tiny_dense: Path, stay: int, group: int) -> None:
    model, _ = load_model(tiny_dense)
    masks = group_masks(model, group, 1 - stay / group)
    assert "stem.0.weight" not in masks  # three colours
    assert {name.rpartition(".")[2] for name in masks} == {"weight"}
    for name, mask in masks.items():
        rows = mask.movedim(1, -1).reshape(-1, group)
        weights = model.get_parameter(name).detach().movedim(1, -1).reshape(-1, group).abs()
        assert set(rows.sum(1).tolist()) == {stay}
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


def test_the_schedule_is_zhus_and_guptas() -> None:
    shares = [scheduled_sparsity(0.8, step / 10) for step in range(13)]
    assert shares[0] == 0
    assert shares[5] == pytest.approx(0.8 * (1 - 0.5**3))
    assert shares[10:] == [0.8] * 3
    assert shares == sorted(shares)


@pytest.mark.thorough
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_gradually_ends_where_it_should(tiny_inputs: MethodInputs, tmp_path: Path, pattern: str) -> None:
    details = write_candidate(settings(0.5, pattern=pattern, schedule="gradual"), tiny_inputs, tmp_path)
    assert details.masked_share == pytest.approx(0.5, abs=1e-5)
    sparse, _ = load_model(tmp_path)
    # Another network than with all masks at once: weights had time to move.
    (tmp_path / "once").mkdir()
    calm = dataclasses.replace(tiny_inputs, scratch=tmp_path / "other")
    write_candidate(settings(0.5, pattern=pattern), calm, tmp_path / "once")
    once, _ = load_model(tmp_path / "once")
    assert not torch.equal(sparse.blocks[1].conv2.weight, once.blocks[1].conv2.weight)


@pytest.mark.slow
def test_a_gradual_training_that_was_stopped_ends_the_same(
    tiny_inputs: MethodInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    config = settings(0.6, schedule="gradual", recovery={**RECOVERY, "epochs": 4})
    whole, again = tmp_path / "whole", tmp_path / "again"
    for folder in (whole, again):
        folder.mkdir()
    write_candidate(config, dataclasses.replace(tiny_inputs, scratch=tmp_path / "apart"), whole)
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)

    calls: list[int] = []
    module = sys.modules["winnow.compression.sparsify"]  # the package's name of it is the function
    apply = module._MaskSchedule.apply

    def applies_until(self: Any, model: nn.Module, step: int) -> None:
        calls.append(step)
        if len(calls) == 11:
            raise Stopped
        apply(self, model, step)

    monkeypatch.setattr(module._MaskSchedule, "apply", applies_until)
    with pytest.raises(Stopped):
        write_candidate(config, tiny_inputs, again)
    write_candidate(config, tiny_inputs, again)
    assert calls[10:12] == [11, 11]  # it went on where it was
    assert (whole / "weights.safetensors").read_bytes() == (again / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "2:4", "sparsity": 0.8}, "2:4 makes 0.5 of the weights zero"),
        ({"pattern": "4:4"}, "sets no weight to zero"),
        ({"pattern": "half"}, "should match pattern"),
        ({"pattern": 124}, "YAML reads N:M without quotes as a number, here 124; write it in quotes"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**{"sparsity": 0.5, **changes})


def test_the_share_that_is_asked_for_is_taken_as_it_was_printed() -> None:
    assert settings(0.6667, pattern="1:3").group == 3


def test_a_pattern_that_fits_no_layer_is_refused_before_any_training(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1:5 fits no layer.*multiple of 5; this network's layers have 3, 48, 96"):
        write_candidate(settings(0.8, pattern="1:5"), tiny_inputs, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("schedule", ["once", "gradual"])
@pytest.mark.parametrize("hint", ["features", "attention"])
def test_a_hints_own_layer_is_not_masked(tiny_inputs: MethodInputs, tmp_path: Path, schedule: str, hint: str) -> None:
    config = settings(0.5, schedule=schedule, recovery={**RECOVERY, "hint": hint})
    write_candidate(config, tiny_inputs, tmp_path)
    model, _ = load_model(tmp_path)
    assert zeros(model) == round(0.5 * sum(value.numel() for value in masked(model).values()))
