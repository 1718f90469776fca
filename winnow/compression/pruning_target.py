"""Find the share of channels to remove for a target (half of the multiply-adds, 0.8 ms per call) by bisection.

Shares of channels, parameters, multiply-adds and milliseconds all differ: 30 % of the channels are half of the
parameters, and any share of the milliseconds. So each trial prunes a copy and measures it. A latency is measured on
this machine, interleaved with the unpruned network; the pruned copies are not trained, which costs the same time.
Shares have a resolution of one percent; the smallest that reaches the target is taken.

The shortest of many noisy timings is biased towards values that are low by chance. So the chosen network is timed
again, for longer, and more channels are removed until such an independent timing reaches the target.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from winnow.benchmark.timing import time_pair
from winnow.compression.channel_pruning import (
    EmptyPruning,
    PruningStep,
    copy_with_gradients,
    count_prunable_channels,
    remove_channels,
)
from winnow.compression.network_size import SIZE_MEASURES, count_macs
from winnow.compression.post_training_quantization import quantize_statically
from winnow.config.pruning_amount import Latency, Remove
from winnow.deploy.inference_runtimes import open_case
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtime_properties import Predict
from winnow.errors import ConfigError
from winnow.hardware import cores
from winnow.models.backbones import Architecture
from winnow.records.benchmark import BenchmarkCase
from winnow.records.method_results import PruningTrial
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

ROUNDINGS = (4, 8, 16, 32)
MAX_PERCENT = 99
CALLS, ROUNDS, CONFIRMING_ROUNDS = 20, 5, 15
"""Timed calls per round, and rounds of a trial and of a confirmation."""


@dataclass(frozen=True)
class PruningPlan:
    """The chosen pruning step, and every trial on the way to it."""

    cut: PruningStep
    tried: list[PruningTrial]


@dataclass(frozen=True)
class Budget:
    """An upper limit for a quantity of a network."""

    name: str
    limit: float
    measure: Callable[[nn.Module, Architecture], float]
    confirm: Callable[[nn.Module, Architecture], float] | None = None
    """Measures the chosen network again, more precisely; None where `measure` is exact."""


def plan_pruning(
    model: nn.Module, architecture: Architecture, budget: Budget, step: PruningStep, roundings: tuple[int, ...]
) -> PruningPlan:
    """Return the plan with the smallest share that meets the budget, for the rounding that keeps most multiply-adds.

    `step` gives all but share and rounding. Raises ConfigError where even the largest share does not meet the budget.
    """
    plans: list[tuple[int, PruningPlan]] = []
    tried: list[PruningTrial] = []
    empty: EmptyPruning | None = None
    for rounding in roundings:
        rounded_step = dataclasses.replace(step, round_to=rounding)
        try:
            best = _bisect(model, architecture, budget, rounded_step, tried)
        except EmptyPruning as error:  # every layer is too narrow for this rounding
            empty, best = error, None
        if best is not None:
            plans.append((best[1], PruningPlan(best[0], tried)))
    if not plans:
        if empty is not None and not tried:
            raise empty
        confirmed = [trial.confirmed for trial in tried if trial.confirmed is not None]
        reached = min(confirmed or [trial.reached for trial in tried if trial.reached is not None])
        raise ConfigError(
            f"candidates: method prune cannot bring the {budget.name} of this {architecture.backbone} down to "
            f"{budget.limit:.4g}: with the present max_channels and round_to it reaches {reached:.4g}; remove less, "
            "raise max_channels, or lower round_to"
        )
    return max(plans, key=lambda x: x[0])[1]


def _bisect(
    model: nn.Module, architecture: Architecture, budget: Budget, step: PruningStep, tried: list[PruningTrial]
) -> tuple[PruningStep, int] | None:
    """Return (step, multiply-adds left) for the smallest share that meets the budget; None where none does."""

    def evaluate(percent: int) -> tuple[PruningStep, int] | None:
        trial_step, trial, smaller = _pruned_copy(model, architecture, step, percent)
        reached = budget.measure(trial, smaller)
        log.info("%d %% of the channels, multiples of %d: %s %.4g", percent, step.round_to, budget.name, reached)
        tried.append(PruningTrial(share=trial_step.share, round_to=step.round_to, reached=reached))
        return (trial_step, count_macs(trial, smaller)) if reached <= budget.limit else None

    low, high = 0, MAX_PERCENT
    best = evaluate(high)
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        try:
            result = evaluate(middle)
        except EmptyPruning:  # the share is too small
            result = None
        if result is None:
            low = middle
        else:
            best, high = result, middle
    if best is None or budget.confirm is None:
        return best
    return _confirmed(model, architecture, budget, best[0], tried)


def _pruned_copy(
    model: nn.Module, architecture: Architecture, step: PruningStep, percent: int
) -> tuple[PruningStep, nn.Module, Architecture]:
    """Return (the step at that share, a pruned copy of the network, its architecture)."""
    trial_step = dataclasses.replace(step, share=percent / 100)
    with compute_lock():
        trial = copy_with_gradients(model)
        return trial_step, trial, remove_channels(trial, architecture, trial_step)


def _confirmed(
    model: nn.Module, architecture: Architecture, budget: Budget, step: PruningStep, tried: list[PruningTrial]
) -> tuple[PruningStep, int] | None:
    """Return (step, multiply-adds left) for the first share, from the chosen one on, that a second timing confirms."""
    assert budget.confirm is not None
    rejected_macs: int | None = None
    for percent in range(round(step.share * 100), MAX_PERCENT + 1):
        trial_step, trial, smaller = _pruned_copy(model, architecture, step, percent)
        macs = count_macs(trial, smaller)
        if macs == rejected_macs:  # rounding gives the same network again
            continue
        reached = budget.confirm(trial, smaller)
        verdict = "confirmed" if reached <= budget.limit else f"not within {budget.limit:.4g} when timed again"
        log.info("%d %% of the channels: %s %.4g, %s", percent, budget.name, reached, verdict)
        tried.append(PruningTrial(share=trial_step.share, round_to=step.round_to, confirmed=reached))
        if reached <= budget.limit:
            return trial_step, macs
        rejected_macs = macs
    return None


def make_budget(remove: Remove, model: nn.Module, architecture: Architecture) -> Budget:
    """Return the budget that `remove` sets for this network; for a latency the network is timed first."""
    ((name, value),) = remove.goal.items()
    if isinstance(value, Latency):
        probe = LatencyProbe(value, model, architecture)
        limit = value.ms if value.ms is not None else probe.parent_ms * (1 - (value.share or 0.0))
        name = f"latency in ms ({value.runtime} {value.precision}, batch {value.batch})"
        return Budget(name, limit, probe.ms, partial(probe.ms, rounds=CONFIRMING_ROUNDS))
    measure = count_prunable_channels if name == "channels" else SIZE_MEASURES[name]
    return Budget(name, measure(model, architecture) * (1 - value), measure)


class LatencyProbe:
    """Times networks, interleaved with the parent network it was created with."""

    def __init__(self, latency: Latency, parent: nn.Module, architecture: Architecture) -> None:
        self.latency = latency
        self.pixels_NHWC = np.random.default_rng(0).integers(
            0, 256, (latency.batch, architecture.image_size, architecture.image_size, 3), np.uint8
        )
        self.parent = self._open(parent, architecture)
        self.parent_ms = statistics.median(self._times(self.parent, CONFIRMING_ROUNDS)[1])

    def ms(self, network: nn.Module, architecture: Architecture, rounds: int = ROUNDS) -> float:
        """Return the p50 of a call in ms, corrected for drift by the parent's time in the same rounds."""
        own_R, parent_R = self._times(self._open(network, architecture), rounds)
        ratios = [own_ms / parent_ms for own_ms, parent_ms in zip(own_R, parent_R, strict=True)]
        return statistics.median(ratios) * self.parent_ms

    def _times(self, predict: Predict, rounds: int) -> tuple[list[float], list[float]]:
        return time_pair(predict, self.parent, self.pixels_NHWC, CALLS, rounds)

    def _open(self, network: nn.Module, architecture: Architecture) -> Predict:
        latency = self.latency
        case = BenchmarkCase("trial", latency.runtime, latency.precision, "file", latency.batch, cores())
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            export_onnx(network, architecture, folder / MODEL)
            if latency.precision == "int8":
                quantize_statically(folder / MODEL, folder / MODEL, self.pixels_NHWC[:1])
            return open_case(folder, case)
