from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from winnow.compression.channel_importance import Criterion
from winnow.compression.channel_pruning import EmptyPruning, PruningStep, min_channels_by_layer, remove_channels
from winnow.compression.network_size import count_macs, count_parameters
from winnow.compression.pruning_target import Budget, LatencyProbe, make_budget, plan_pruning
from winnow.config.pruning_amount import Latency, Remove
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, load_model


@pytest.fixture
def dense(tiny_dense: Path) -> tuple[nn.Module, Architecture]:
    return load_model(tiny_dense)


def pruning_step(model: nn.Module, max_channels: float = 0.75) -> PruningStep:
    return PruningStep(0.5, Criterion("magnitude", 0), 8, min_channels_by_layer(model, max_channels))


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("quantity", ["parameters", "macs"])
def test_the_smallest_share_that_meets_the_budget(
    dense: tuple[nn.Module, Architecture], quantity: str, share: float
) -> None:
    model, architecture = dense
    budget = make_budget(Remove.model_validate({quantity: share}), model, architecture)
    count: dict[str, Any] = {"parameters": lambda network, _: count_parameters(network), "macs": count_macs}
    dense_cost = count[quantity](model, architecture)
    assert budget.limit == pytest.approx(dense_cost * (1 - share))
    step = plan_pruning(model, architecture, budget, pruning_step(model), (8,)).cut
    assert count[quantity](model, architecture) == dense_cost  # trials use copies
    for reduction, is_reached in ((0.0, True), (0.01, False)):
        copied, copied_architecture = copy_network(dense)
        pruned_architecture = remove_channels(
            copied, copied_architecture, PruningStep(step.share - reduction, step.criterion, 8, step.min_channels)
        )
        assert (count[quantity](copied, pruned_architecture) <= budget.limit) is is_reached


def copy_network(dense: tuple[nn.Module, Architecture]) -> tuple[nn.Module, Architecture]:
    import copy

    return copy.deepcopy(dense[0]), dense[1]


def test_an_unreachable_budget_is_an_error(dense: tuple[nn.Module, Architecture]) -> None:
    model, architecture = dense
    budget = make_budget(Remove(parameters=0.9), model, architecture)
    with pytest.raises(ConfigError, match=r"the parameters of this resnet8 down to .*it reaches .*remove less"):
        plan_pruning(model, architecture, budget, pruning_step(model, max_channels=0.3), (8,))


def test_the_rounding_that_keeps_most_is_chosen(dense: tuple[nn.Module, Architecture]) -> None:
    model, architecture = dense

    # Multiples of 16 are twice as fast here, so they may keep more channels.
    def fake_latency(network: nn.Module, network_architecture: Architecture) -> float:
        is_slow = any(m.out_channels % 16 for m in network.modules() if isinstance(m, nn.Conv2d))
        return count_macs(network, network_architecture) * (2.0 if is_slow else 1.0)

    budget = Budget("time", count_macs(model, architecture) * 0.6, fake_latency)
    plan = plan_pruning(model, architecture, budget, pruning_step(model), (8, 16))
    assert plan.cut.round_to == 16
    assert {trial.round_to for trial in plan.tried} == {8, 16}


@pytest.mark.thorough
def test_an_optimistic_latency_is_confirmed_and_more_is_removed(dense: tuple[nn.Module, Architecture]) -> None:
    model, architecture = dense
    dense_macs = count_macs(model, architecture)

    def optimistic_latency(network: nn.Module, network_architecture: Architecture) -> float:
        return count_macs(network, network_architecture) * 0.8

    budget = Budget("time", dense_macs * 0.6, optimistic_latency, confirm=count_macs)
    plan = plan_pruning(model, architecture, budget, pruning_step(model), (8,))
    expected = plan_pruning(
        model, architecture, Budget("time", dense_macs * 0.6, count_macs), pruning_step(model), (8,)
    )
    assert plan.cut == expected.cut
    confirmed = [trial.confirmed for trial in plan.tried if trial.confirmed is not None]
    assert confirmed[-1] <= dense_macs * 0.6 < min(confirmed[:-1])
    assert len(confirmed) == len(set(confirmed))  # a share that leaves the same network is not timed twice
    unreachable = Budget("time", dense_macs * 0.6, optimistic_latency, confirm=lambda *_: dense_macs)
    with pytest.raises(
        ConfigError, match=re.escape(f"with the present max_channels and round_to it reaches {dense_macs:.4g}")
    ):
        plan_pruning(model, architecture, unreachable, pruning_step(model), (8,))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_the_latency_probe_distinguishes_small_from_large(
    dense: tuple[nn.Module, Architecture], precision: str
) -> None:
    model, architecture = dense
    latency = Latency.model_validate({"share": 0.2, "runtime": "ort", "precision": precision, "batch": 64})
    probe = LatencyProbe(latency, model, architecture)
    copied, copied_architecture = copy_network(dense)
    pruned_architecture = remove_channels(
        copied, copied_architecture, PruningStep(0.7, Criterion("magnitude", 0), 8, min_channels_by_layer(copied, 0.75))
    )
    assert 0 < probe.ms(copied, pruned_architecture) < probe.parent_ms
    budget = make_budget(Remove(latency=latency), model, architecture)
    assert budget.name == f"latency in ms (ort {precision}, batch 64)"
    assert budget.limit > 0


def test_a_rounding_that_is_too_coarse_is_skipped(
    dense: tuple[nn.Module, Architecture],
) -> None:
    model, architecture = dense
    budget = make_budget(Remove(macs=0.3), model, architecture)
    max_width = max(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    assert plan_pruning(model, architecture, budget, pruning_step(model), (2 * max_width, 8)).cut.round_to == 8
    with pytest.raises(EmptyPruning, match="leaves this resnet8 unchanged; remove more, or lower round_to"):
        plan_pruning(model, architecture, budget, pruning_step(model), (2 * max_width,))
