from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from winnow.compression import write_candidate
from winnow.compression.channel_pruning import count_prunable_channels
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.network_size import count_macs, count_parameters
from winnow.compression.prune import train_with_group_sparsity
from winnow.config import Prune
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, build_model, load_model

RECOVERY = {"epochs": 1, "min_steps": 1, "batch_size": 32, "optimiser": {"learning_rate": 0.05}}


def settings(**changes: Any) -> Prune:
    fields = {"from": "dense", "method": "prune", "remove": {"channels": 0.3}, "recovery": RECOVERY, **changes}
    return Prune.model_validate(fields)


@pytest.mark.thorough
def test_method_writes_a_candidate(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(), tiny_inputs, tmp_path)
    loaded, _ = load_model(tmp_path)
    assert details.parameters_after == count_parameters(loaded) < details.parameters_before
    assert [row["epoch"] for row in details.curves] == [1]
    assert {path.name for path in tmp_path.iterdir()} >= {"model.onnx", "weights.safetensors", "architecture.json"}


@pytest.mark.thorough
@pytest.mark.parametrize("quantity", ["parameters", "macs"])
def test_an_amount_is_reached(tiny_inputs: MethodInputs, tmp_path: Path, quantity: str) -> None:
    details = write_candidate(settings(remove={quantity: 0.5}), tiny_inputs, tmp_path)
    assert 0.4 < getattr(details, f"{quantity}_after") / getattr(details, f"{quantity}_before") <= 0.5
    (row,) = details.cuts
    assert row.goal == quantity
    assert set(row.tried[0].model_dump()) == {"share", "reached", "round_to"}


@pytest.mark.thorough
def test_a_limit_that_is_already_met_is_an_error(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    latency = {"ms": 1e4, "runtime": "ort", "precision": "f32", "batch": 1}
    with pytest.raises(
        ConfigError, match=r"the latency in ms .* of this resnet8 is .*, already at or below the target of 1e\+04"
    ):
        write_candidate(settings(remove={"latency": latency}), tiny_inputs, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_latency_is_reached(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    latency = {"share": 0.3, "runtime": "ort", "precision": "f32", "batch": 64}
    details = write_candidate(settings(remove={"latency": latency}), tiny_inputs, tmp_path)
    (row,) = details.cuts
    trials_of_cut = [trial for trial in row.tried if (trial.share, trial.round_to) == (row.share, row.round_to)]
    assert trials_of_cut[-1].confirmed is not None  # the second timing decides
    assert trials_of_cut[-1].confirmed <= row.limit
    assert details.macs_after < details.macs_before


@pytest.mark.thorough
def test_several_rounds_end_at_the_size_of_one(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    folders, remaining_shares = [tmp_path / "one", tmp_path / "three"], []
    for folder, rounds in zip(folders, (1, 3), strict=True):
        folder.mkdir()
        inputs = dataclasses.replace(tiny_inputs, scratch=tmp_path / f"scratch-{rounds}")
        details = write_candidate(settings(remove={"macs": 0.6}, rounds=rounds), inputs, folder)
        remaining_shares.append(details.macs_after / details.macs_before)
        assert len(details.cuts) == rounds
        assert list(details.curves_before) == [f"round {number}" for number in range(1, rounds)]
        shares = [row.parameters for row in details.cuts]
        assert shares == sorted(set(shares), reverse=True)
    assert remaining_shares[0] == pytest.approx(remaining_shares[1], abs=0.08)
    x = torch.rand(2, 3, 16, 16)
    assert not torch.equal(load_model(folders[0])[0](x), load_model(folders[1])[0](x))


@pytest.mark.thorough
def test_cumulative_channel_shares_of_rounds_are_linear(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    details = write_candidate(settings(remove={"channels": 0.5}, rounds=2, round_to=1), tiny_inputs, tmp_path)
    assert [row.share for row in details.cuts] == pytest.approx([0.25, 1 - 0.5 / 0.75], abs=0.01)


@pytest.mark.thorough
def test_rounding_does_not_add_up_over_rounds(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    removed_shares = {}
    for rounds in (1, 5):
        folder = tmp_path / f"in-{rounds}"
        folder.mkdir()
        inputs = dataclasses.replace(tiny_inputs, scratch=tmp_path / f"scratch-{rounds}")
        details = write_candidate(settings(remove={"channels": 0.3}, rounds=rounds, round_to=8), inputs, folder)
        channels = details.cuts[0].before
        removed_shares[rounds] = 1 - count_prunable_channels(*load_model(folder)) / channels
        assert len(details.cuts) == rounds
    assert 0.3 <= removed_shares[1] <= 0.36
    assert removed_shares[5] <= 0.36


def test_sparse_learning_refuses_unsupported_networks(tiny_inputs: MethodInputs) -> None:
    architecture = Architecture(backbone="regnet_x_400mf", num_classes=3, image_size=16)
    with pytest.raises(ConfigError, match="sparse_learning does not support the grouped convolutions of a regnet"):
        train_with_group_sparsity(
            build_model(architecture), architecture, settings(sparse_learning={"epochs": 1}), tiny_inputs
        )


@pytest.mark.thorough
def test_an_interrupted_pruning_resumes_with_its_steps(tiny_inputs: MethodInputs, tmp_path: Path) -> None:
    """A kill in the last recovery leaves the steps and the earlier checkpoints."""
    uninterrupted, resumed = tmp_path / "whole", tmp_path / "again"
    for folder in (uninterrupted, resumed):
        folder.mkdir()
    config = settings(remove={"macs": 0.5}, rounds=2, sparse_learning={"epochs": 1, "strength": 1e-3})
    result = write_candidate(config, tiny_inputs, uninterrupted)
    for checkpoint in tiny_inputs.scratch.glob("recovery*"):
        checkpoint.unlink()
    # With another criterion, earlier steps are kept.
    resumed_result = write_candidate(config.model_copy(update={"importance": "random"}), tiny_inputs, resumed)
    assert resumed_result.cuts == result.cuts
    assert (resumed / "weights.safetensors").read_bytes() == (uninterrupted / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_sparse_learning_shrinks_the_smallest_filters(tiny_inputs: MethodInputs) -> None:
    model, architecture = load_model(tiny_inputs.parent.folder)
    control = copy.deepcopy(model)
    config = settings(sparse_learning={"epochs": 2, "strength": 0.02})
    train_with_group_sparsity(model, architecture, config, tiny_inputs)
    control_inputs = dataclasses.replace(tiny_inputs, scratch=tiny_inputs.scratch / "calm")
    train_with_group_sparsity(
        control, architecture, config.model_copy(update={"sparse_learning": negligible_penalty(config)}), control_inputs
    )

    def quartile_ratio(network: nn.Module) -> float:
        norms = network.blocks[1].conv1.weight.detach().flatten(1).norm(dim=1)
        return float(norms.quantile(0.25) / norms.quantile(0.75))

    assert quartile_ratio(model) < quartile_ratio(control)
    assert count_macs(model, architecture) == count_macs(control, architecture)


def negligible_penalty(config: Prune) -> Any:
    return config.sparse_learning.model_copy(update={"strength": 1e-9})
