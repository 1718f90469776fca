"""The training loop, a generator that yields after every epoch, so that its caller can measure and log.

    def monitor(epoch: Epoch) -> None:
        epoch.row["knn"] = ...                       # goes into the checkpoint and the curves

    curves = run_to_end(fit(model, batches, loss, plan, Checkpoint(folder, name)), monitor)

Every step is a function of (seed, step): the batch, the augmentation's random numbers and dropout are drawn from a hash
of them (winnow/random_streams.py). So an interrupted training that resumes from its last checkpoint ends bit-identical
on a CPU with the same number of threads. Ctrl-C and SIGTERM write a checkpoint of the current step. Forward passes run
in bf16 where the processor (AMX or AVX512-BF16) or the GPU has hardware for it; losses are float32.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import nn

from winnow.config import Optimiser
from winnow.data.batches import BatchSource
from winnow.errors import TrainingError
from winnow.eta import format_duration
from winnow.random_streams import stream_seed
from winnow.records import CurveRow
from winnow.timing_lock import compute_lock
from winnow.training.checkpoint import Checkpoint, TrainingState, load_checkpoint, save_checkpoint
from winnow.training.device import bf16_is_fast, default_device
from winnow.training.optimiser import create_sgd
from winnow.training.stop_signals import deferred_signals

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
SECONDS_BETWEEN_LINES, SECONDS_WITHIN_AN_EPOCH = 4.0, 30.0
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""(model, images uint8 (B, 3, H, W), labels int64 (B,)) -> scalar float32."""


@dataclass(frozen=True)
class TrainingPlan:
    """Epochs, steps, optimiser and seed of a training; each kind has its own seed (winnow/random_streams.py)."""

    epochs: int
    steps_per_epoch: int
    optimiser: Optimiser
    seed: int

    @property
    def steps(self) -> int:
        """The total number of steps."""
        return self.epochs * self.steps_per_epoch


def _nothing(_model: nn.Module, _step: int) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """Functions of (model, step number from 1) that some methods run within a step."""

    after_backward: Callable[[nn.Module, int], None] = _nothing
    """May change the gradients."""
    after_step: Callable[[nn.Module, int], None] = _nothing
    """May change the weights, for example to keep zeros."""


NO_HOOKS = Hooks()


@dataclass
class Epoch:
    """A finished epoch; the caller may add to its row before the generator continues."""

    number: int
    of: int
    row: CurveRow


def learning_rate_at(step: int, plan: TrainingPlan) -> float:
    """Return the rate: linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    warmup_steps = max(1, round(plan.optimiser.warmup * plan.steps))
    if step < warmup_steps and plan.optimiser.warmup > 0:
        return plan.optimiser.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, plan.steps - warmup_steps)
    return plan.optimiser.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def fit(
    model: nn.Module,
    batches: BatchSource,
    loss: Loss,
    plan: TrainingPlan,
    checkpoint: Checkpoint | None = None,
    hooks: Hooks = NO_HOOKS,
) -> Generator[Epoch, None, list[CurveRow]]:
    """Train `model` in place, and yield after every epoch; return the curves.

    Raises TrainingError when the loss is no longer a number, ArtifactError when a checkpoint is damaged.
    """
    target_device, autocast = default_device(), bf16_is_fast()
    model.to(target_device).to(memory_format=torch.channels_last)
    optimiser = create_sgd(model, plan.optimiser)
    state = load_checkpoint(checkpoint, model, optimiser) if checkpoint else TrainingState()
    last_save = last_log = time.monotonic()
    first_step, step_seconds = state.step, 0.0
    while state.step < plan.steps:
        model.train()
        torch.manual_seed(stream_seed(plan.seed, "augmentation", state.step))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(state.step, plan) * group["lr_scale"]
        with compute_lock(), deferred_signals() as stop:
            started = time.monotonic()  # time spent waiting for the lock does not count
            images_BCHW, labels_B = (tensor.to(target_device, non_blocking=True) for tensor in batches.at(state.step))
            with torch.autocast(target_device.type, dtype=torch.bfloat16, enabled=autocast):
                value = loss(model, images_BCHW, labels_B)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            state.step += 1
            hooks.after_backward(model, state.step)
            optimiser.step()
            hooks.after_step(model, state.step)
            state.loss_sum += float(value.detach())
            step_seconds += time.monotonic() - started
        left = step_seconds / (state.step - first_step) * (plan.steps - state.step)
        _check_finite(state, plan)
        if state.step % plan.steps_per_epoch == 0:
            number = state.step // plan.steps_per_epoch
            row = {"epoch": float(number), "loss": state.loss_sum / plan.steps_per_epoch}
            state.loss_sum = 0.0
            yield Epoch(number, plan.epochs, row)
            state.history.append(row)
            now = time.monotonic()
            if now - last_log > SECONDS_BETWEEN_LINES or number == plan.epochs:
                log.info("epoch %d/%d  %s  %s left", number, plan.epochs, _format_row(row), format_duration(left))
                last_log = now
        elif time.monotonic() - last_log > SECONDS_WITHIN_AN_EPOCH:
            last_log = time.monotonic()
            log.info("step %d of %d  %s left", state.step, plan.steps, format_duration(left))
        due = stop.signal is not None or time.monotonic() - last_save > CHECKPOINT_SECONDS
        if checkpoint and (due or state.step % plan.steps_per_epoch == 0):
            save_checkpoint(checkpoint, model, optimiser, state, tensors=due or state.step == plan.steps)
            last_save = time.monotonic() if due else last_save
        if stop.signal is not None:
            stop.raise_again()
    model.eval()
    return state.history


def run_to_end(
    training: Generator[Epoch, None, list[CurveRow]], on_epoch: Callable[[Epoch], None] = lambda _epoch: None
) -> list[CurveRow]:
    """Run a training to its end, call `on_epoch` after every epoch, and return all curves."""
    while True:
        try:
            epoch = next(training)
        except StopIteration as end:
            curves: list[CurveRow] = end.value
            return curves
        on_epoch(epoch)


def joined_curves(first: list[CurveRow], second: list[CurveRow]) -> list[CurveRow]:
    """Return the curves of two trainings, one after the other, with consecutive epochs."""
    start = first[-1]["epoch"] if first else 0.0
    return [*first, *({**row, "epoch": row["epoch"] + start} for row in second)]


def _format_row(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")


def _check_finite(state: TrainingState, plan: TrainingPlan) -> None:
    """Raise TrainingError when the loss is no longer a number."""
    if not math.isfinite(state.loss_sum):
        raise TrainingError(
            f"the loss is no longer a number at step {state.step} of {plan.steps} "
            f"(learning rate {plan.optimiser.learning_rate}); lower the learning rate in params.yaml"
        )
