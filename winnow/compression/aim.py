"""From an amount (half of the multiply-adds, 0.8 ms a call) to the share of channels that reaches it: by bisection.

Channels, parameters, multiply-adds and milliseconds are four different things: 30 % of the channels are half of the
parameters, and any share of the milliseconds. So each try removes channels from a copy and looks. A latency is measured
on the machine, interleaved with the network it is compared with; the tries have random answers, which cost the same
time. Shares are tried to a hundredth; the smallest that reaches the amount is taken.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from winnow.compression.channels import (
    COUNTS,
    Cut,
    NothingGoes,
    copy_with_gradients,
    multiply_adds,
    remove_channels,
    root_channels,
)
from winnow.compression.post_training import quantize_statically
from winnow.config.candidates import Latency, Remove
from winnow.errors import ConfigError
from winnow.export import export_onnx
from winnow.machine import cores
from winnow.model_file import MODEL
from winnow.models.backbones import Architecture
from winnow.quiet import busy_turn
from winnow.runtimes import Cell, Predict, open_cell
from winnow.timing import timed_in_turns

log = logging.getLogger(__name__)

ROUNDINGS = (4, 8, 16, 32)
CALLS, VISITS = 20, 5


@dataclass(frozen=True)
class Aim:
    """What was found: the cut, and what was tried on the way."""

    cut: Cut
    tried: list[dict[str, float]]


@dataclass(frozen=True)
class Goal:
    """A quantity of a network that must come down to `limit`."""

    name: str
    limit: float
    measure: Callable[[nn.Module, Architecture], float]


def aim(model: nn.Module, architecture: Architecture, goal: Goal, cut: Cut, roundings: tuple[int, ...]) -> Aim:
    """The smallest share of channels with which `goal` is reached, for the rounding that keeps most multiply-adds.

    `cut` gives all but share and rounding. Raises ConfigError where even the largest share does not reach it.
    """
    found: list[tuple[int, Aim]] = []
    tried: list[dict[str, float]] = []
    refused: NothingGoes | None = None
    for rounding in roundings:
        mine = dataclasses.replace(cut, round_to=rounding)
        try:
            best = _bisect(model, architecture, goal, mine, tried)
        except NothingGoes as error:  # every layer is too narrow for this rounding
            refused, best = error, None
        if best is not None:
            found.append((best[1], Aim(best[0], tried)))
    if not found:
        if refused is not None and not tried:
            raise refused
        reached = min(row["reached"] for row in tried)
        raise ConfigError(
            f"candidates: method prune cannot bring the {goal.name} of this {architecture.backbone} down to "
            f"{goal.limit:.4g}: with max_channels and round_to as they are it reaches {reached:.4g}; remove less, "
            "raise max_channels, or lower round_to"
        )
    return max(found, key=lambda one: one[0])[1]


def _bisect(
    model: nn.Module, architecture: Architecture, goal: Goal, cut: Cut, tried: list[dict[str, float]]
) -> tuple[Cut, int] | None:
    """(the cut, the multiply-adds it leaves) of the smallest share that reaches the goal; None where none does."""

    def look(hundredths: int) -> tuple[Cut, int] | None:
        share = dataclasses.replace(cut, share=hundredths / 100)
        with busy_turn():
            trial = copy_with_gradients(model)
            smaller = remove_channels(trial, architecture, share)
        reached = goal.measure(trial, smaller)
        log.info("%d %% of the channels, multiples of %d: %s %.4g", hundredths, cut.round_to, goal.name, reached)
        tried.append({"share": share.share, "round_to": float(cut.round_to), "reached": reached})
        return (share, multiply_adds(trial, smaller)) if reached <= goal.limit else None

    low, high = 0, 99
    best = look(high)
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        try:
            found = look(middle)
        except NothingGoes:  # too little was asked for
            found = None
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def goal_of(remove: Remove, model: nn.Module, architecture: Architecture) -> Goal:
    """What `remove` asks of this network. A latency is measured for the network first."""
    ((name, value),) = remove.goal.items()
    if isinstance(value, Latency):
        watch = Stopwatch(value, model, architecture)
        limit = value.ms if value.ms is not None else watch.parent_ms * (1 - (value.share or 0.0))
        return Goal(f"latency in ms ({value.runtime} {value.precision}, batch {value.batch})", limit, watch.ms)
    measure = root_channels if name == "channels" else COUNTS[name]
    return Goal(name, measure(model, architecture) * (1 - value), measure)


class Stopwatch:
    """Times networks against the one it was made with, visit by visit in turn."""

    def __init__(self, latency: Latency, parent: nn.Module, architecture: Architecture) -> None:
        self.latency = latency
        self.pixels_NHWC = np.random.default_rng(0).integers(
            0, 256, (latency.batch, architecture.image_size, architecture.image_size, 3), np.uint8
        )
        self.parent = self._open(parent, architecture)
        self.parent_ms = self._times(self.parent)[1]

    def ms(self, network: nn.Module, architecture: Architecture) -> float:
        """p50 of a call, as if the parent took what it took at first: what drifts hits both."""
        mine, its = self._times(self._open(network, architecture))
        return mine / its * self.parent_ms

    def _times(self, predict: Predict) -> tuple[float, float]:
        return timed_in_turns(predict, self.parent, self.pixels_NHWC, CALLS, VISITS)

    def _open(self, network: nn.Module, architecture: Architecture) -> Predict:
        latency = self.latency
        cell = Cell("trial", latency.runtime, latency.precision, "file", latency.batch, cores())
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            export_onnx(network, architecture, folder / MODEL)
            if latency.precision == "int8":
                quantize_statically(folder / MODEL, folder / MODEL, self.pixels_NHWC[:1])
            return open_cell(folder, cell)
