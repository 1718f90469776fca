"""From an amount (half of the multiply-adds, 0.8 ms a call) to the share of channels that reaches it: by bisection.

Channels, parameters, multiply-adds and milliseconds are four different things: 30 % of the channels are half of the
parameters, and any share of the milliseconds. So each try removes channels from a copy and looks. A latency is measured
on the machine, interleaved with the network it is compared with; the tries have random answers, which cost the same
time. Shares are tried to a hundredth; the smallest that reaches the amount is taken. Of many short timings the one that
reaches a latency is a lucky one, so the network is timed again, for longer, and more channels go until a timing that
chose nothing reaches it.
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
    COUNTS,
    EmptyPruning,
    PruningStep,
    copy_with_gradients,
    multiply_adds,
    remove_channels,
    root_channels,
)
from winnow.compression.post_training_quantization import quantize_statically
from winnow.config.candidates import Latency, Remove
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import BenchmarkCase, Predict, open_cell
from winnow.errors import ConfigError
from winnow.hardware import cores
from winnow.models.backbones import Architecture
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

ROUNDINGS = (4, 8, 16, 32)
MOST_HUNDREDTHS = 99
CALLS, ROUNDS, CONFIRMING_ROUNDS = 20, 5, 15


@dataclass(frozen=True)
class PruningPlan:
    """What was found: the cut, and what was tried on the way."""

    cut: PruningStep
    tried: list[dict[str, float]]


@dataclass(frozen=True)
class Budget:
    """A quantity of a network that must come down to `limit`."""

    name: str
    limit: float
    measure: Callable[[nn.Module, Architecture], float]
    confirm: Callable[[nn.Module, Architecture], float] | None = None
    """Measures what was chosen by a noisy `measure` again, more closely; None where `measure` is exact."""


def aim(
    model: nn.Module, architecture: Architecture, goal: Budget, cut: PruningStep, roundings: tuple[int, ...]
) -> PruningPlan:
    """The smallest share of channels with which `goal` is reached, for the rounding that keeps most multiply-adds.

    `cut` gives all but share and rounding. Raises ConfigError where even the largest share does not reach it.
    """
    found: list[tuple[int, PruningPlan]] = []
    tried: list[dict[str, float]] = []
    refused: EmptyPruning | None = None
    for rounding in roundings:
        mine = dataclasses.replace(cut, round_to=rounding)
        try:
            best = _bisect(model, architecture, goal, mine, tried)
        except EmptyPruning as error:  # every layer is too narrow for this rounding
            refused, best = error, None
        if best is not None:
            found.append((best[1], PruningPlan(best[0], tried)))
    if not found:
        if refused is not None and not tried:
            raise refused
        confirmed = [row["confirmed"] for row in tried if "confirmed" in row]
        reached = min(confirmed or [row["reached"] for row in tried])
        raise ConfigError(
            f"candidates: method prune cannot bring the {goal.name} of this {architecture.backbone} down to "
            f"{goal.limit:.4g}: with max_channels and round_to as they are it reaches {reached:.4g}; remove less, "
            "raise max_channels, or lower round_to"
        )
    return max(found, key=lambda one: one[0])[1]


def _bisect(
    model: nn.Module, architecture: Architecture, goal: Budget, cut: PruningStep, tried: list[dict[str, float]]
) -> tuple[PruningStep, int] | None:
    """(the cut, the multiply-adds it leaves) of the smallest share that reaches the goal; None where none does."""

    def look(hundredths: int) -> tuple[PruningStep, int] | None:
        share, trial, smaller = _removed(model, architecture, cut, hundredths)
        reached = goal.measure(trial, smaller)
        log.info("%d %% of the channels, multiples of %d: %s %.4g", hundredths, cut.round_to, goal.name, reached)
        tried.append({"share": share.share, "round_to": float(cut.round_to), "reached": reached})
        return (share, multiply_adds(trial, smaller)) if reached <= goal.limit else None

    low, high = 0, MOST_HUNDREDTHS
    best = look(high)
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        try:
            found = look(middle)
        except EmptyPruning:  # too little was asked for
            found = None
        if found is None:
            low = middle
        else:
            best, high = found, middle
    if best is None or goal.confirm is None:
        return best
    return _confirmed(model, architecture, goal, best[0], tried)


def _removed(
    model: nn.Module, architecture: Architecture, cut: PruningStep, hundredths: int
) -> tuple[PruningStep, nn.Module, Architecture]:
    """The cut at that share, and what it leaves of a copy of the network."""
    share = dataclasses.replace(cut, share=hundredths / 100)
    with compute_lock():
        trial = copy_with_gradients(model)
        return share, trial, remove_channels(trial, architecture, share)


def _confirmed(
    model: nn.Module, architecture: Architecture, goal: Budget, cut: PruningStep, tried: list[dict[str, float]]
) -> tuple[PruningStep, int] | None:
    """(the cut, the multiply-adds it leaves) of the first share from the chosen one on that `confirm` bears out."""
    assert goal.confirm is not None
    refuted: int | None = None
    for hundredths in range(round(cut.share * 100), MOST_HUNDREDTHS + 1):
        share, trial, smaller = _removed(model, architecture, cut, hundredths)
        macs = multiply_adds(trial, smaller)
        if macs == refuted:  # rounding left the same network
            continue
        reached = goal.confirm(trial, smaller)
        told = "confirmed" if reached <= goal.limit else f"not within {goal.limit:.4g} when timed again"
        log.info("%d %% of the channels: %s %.4g, %s", hundredths, goal.name, reached, told)
        tried.append({"share": share.share, "round_to": float(cut.round_to), "confirmed": reached})
        if reached <= goal.limit:
            return share, macs
        refuted = macs
    return None


def goal_of(remove: Remove, model: nn.Module, architecture: Architecture) -> Budget:
    """What `remove` asks of this network. A latency is measured for the network first."""
    ((name, value),) = remove.goal.items()
    if isinstance(value, Latency):
        watch = LatencyProbe(value, model, architecture)
        limit = value.ms if value.ms is not None else watch.parent_ms * (1 - (value.share or 0.0))
        name = f"latency in ms ({value.runtime} {value.precision}, batch {value.batch})"
        return Budget(name, limit, watch.ms, partial(watch.ms, rounds=CONFIRMING_ROUNDS))
    measure = root_channels if name == "channels" else COUNTS[name]
    return Budget(name, measure(model, architecture) * (1 - value), measure)


class LatencyProbe:
    """Times networks against the one it was made with, visit by visit in turn."""

    def __init__(self, latency: Latency, parent: nn.Module, architecture: Architecture) -> None:
        self.latency = latency
        self.pixels_NHWC = np.random.default_rng(0).integers(
            0, 256, (latency.batch, architecture.image_size, architecture.image_size, 3), np.uint8
        )
        self.parent = self._open(parent, architecture)
        self.parent_ms = statistics.median(self._times(self.parent, CONFIRMING_ROUNDS)[1])

    def ms(self, network: nn.Module, architecture: Architecture, rounds: int = ROUNDS) -> float:
        """Return the p50 of a call in ms, as if the parent took what it took at first: what drifts hits both."""
        mine, its = self._times(self._open(network, architecture), rounds)
        return statistics.median(own / reference for own, reference in zip(mine, its, strict=True)) * self.parent_ms

    def _times(self, predict: Predict, rounds: int) -> tuple[list[float], list[float]]:
        return time_pair(predict, self.parent, self.pixels_NHWC, CALLS, rounds)

    def _open(self, network: nn.Module, architecture: Architecture) -> Predict:
        latency = self.latency
        cell = BenchmarkCase("trial", latency.runtime, latency.precision, "file", latency.batch, cores())
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            export_onnx(network, architecture, folder / MODEL)
            if latency.precision == "int8":
                quantize_statically(folder / MODEL, folder / MODEL, self.pixels_NHWC[:1])
            return open_cell(folder, cell)
