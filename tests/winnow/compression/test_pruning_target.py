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


def cut(model: nn.Module, most: float = 0.75) -> PruningStep:
    return PruningStep(0.5, Criterion("magnitude", 0), 8, min_channels_by_layer(model, most))


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("what", ["parameters", "macs"])
def test_the_smallest_share_that_reaches_it(dense: tuple[nn.Module, Architecture], what: str, share: float) -> None:
    model, architecture = dense
    budget = make_budget(Remove.model_validate({what: share}), model, architecture)
    count: dict[str, Any] = {"parameters": lambda net, _: count_parameters(net), "macs": count_macs}
    whole = count[what](model, architecture)
    assert budget.limit == pytest.approx(whole * (1 - share))
    step = plan_pruning(model, architecture, budget, cut(model), (8,)).cut
    assert count[what](model, architecture) == whole  # tries are on copies
    for less, reaches in ((0.0, True), (0.01, False)):
        trial, same = load_model_again(dense)
        smaller = remove_channels(trial, same, PruningStep(step.share - less, step.criterion, 8, step.min_channels))
        assert (count[what](trial, smaller) <= budget.limit) is reaches


def load_model_again(dense: tuple[nn.Module, Architecture]) -> tuple[nn.Module, Architecture]:
    import copy

    return copy.deepcopy(dense[0]), dense[1]


def test_what_cannot_be_reached_is_told(dense: tuple[nn.Module, Architecture]) -> None:
    model, architecture = dense
    goal = make_budget(Remove(parameters=0.9), model, architecture)
    with pytest.raises(ConfigError, match=r"the parameters of this resnet8 down to .*it reaches .*remove less"):
        plan_pruning(model, architecture, goal, cut(model, most=0.3), (8,))


def test_of_the_roundings_the_one_that_keeps_most(dense: tuple[nn.Module, Architecture]) -> None:
    model, architecture = dense

    # A clock that counts multiples of 16 as nothing: they may keep more.
    def clock(network: nn.Module, its: Architecture) -> float:
        odd = any(m.out_channels % 16 for m in network.modules() if isinstance(m, nn.Conv2d))
        return count_macs(network, its) * (2.0 if odd else 1.0)

    budget = Budget("time", count_macs(model, architecture) * 0.6, clock)
    plan = plan_pruning(model, architecture, budget, cut(model), (8, 16))
    assert plan.cut.round_to == 16
    assert {trial.round_to for trial in plan.tried} == {8, 16}


@pytest.mark.thorough
def test_a_lucky_measurement_is_timed_again_and_more_goes(dense: tuple[nn.Module, Architecture]) -> None:
    model, architecture = dense
    whole = count_macs(model, architecture)

    def lucky(network: nn.Module, its: Architecture) -> float:
        return count_macs(network, its) * 0.8

    budget = Budget("time", whole * 0.6, lucky, confirm=count_macs)
    plan = plan_pruning(model, architecture, budget, cut(model), (8,))
    exact = plan_pruning(model, architecture, Budget("time", whole * 0.6, count_macs), cut(model), (8,))
    assert plan.cut == exact.cut
    confirmed = [trial.confirmed for trial in plan.tried if trial.confirmed is not None]
    assert confirmed[-1] <= whole * 0.6 < min(confirmed[:-1])
    assert len(confirmed) == len(set(confirmed))  # a share that leaves the same network is not timed twice
    never = Budget("time", whole * 0.6, lucky, confirm=lambda *_: whole)
    with pytest.raises(
        ConfigError, match=re.escape(f"with the present max_channels and round_to it reaches {whole:.4g}")
    ):
        plan_pruning(model, architecture, never, cut(model), (8,))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_a_stopwatch_tells_small_from_large(dense: tuple[nn.Module, Architecture], precision: str) -> None:
    model, architecture = dense
    latency = Latency.model_validate({"share": 0.2, "runtime": "ort", "precision": precision, "batch": 64})
    watch = LatencyProbe(latency, model, architecture)
    small, same = load_model_again(dense)
    smaller = remove_channels(
        small, same, PruningStep(0.7, Criterion("magnitude", 0), 8, min_channels_by_layer(small, 0.75))
    )
    assert 0 < watch.ms(small, smaller) < watch.parent_ms
    goal = make_budget(Remove(latency=latency), model, architecture)
    assert goal.name == f"latency in ms (ort {precision}, batch 64)"
    assert goal.limit > 0


def test_a_rounding_too_coarse_for_every_layer_leaves_the_others_their_chance(
    dense: tuple[nn.Module, Architecture],
) -> None:
    model, architecture = dense
    goal = make_budget(Remove(macs=0.3), model, architecture)
    widest = max(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    assert plan_pruning(model, architecture, goal, cut(model), (2 * widest, 8)).cut.round_to == 8
    with pytest.raises(EmptyPruning, match="leaves this resnet8 unchanged; remove more, or lower round_to"):
        plan_pruning(model, architecture, goal, cut(model), (2 * widest,))
