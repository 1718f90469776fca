"""The one training loop. A generator: it yields after every epoch, and whoever drives it looks, measures and prints.

    def look(epoch: Epoch) -> None:
        epoch.row["knn"] = ...                       # goes into the checkpoint and the curves

    curves = drain(fit(model, batches, loss, plan, Checkpoint(folder, name)), look)

Every step is a function of (seed, step): the batch, the augmentation's random numbers and dropout are drawn from a hash
of them (winnow/random_streams.py), so a killed training that goes on from its last checkpoint ends bit-identical on a
CPU with the same threads. One that is stopped (Ctrl-C, SIGTERM) leaves a checkpoint of the step it was at.
Forward passes run in bf16 where the processor has it for real (AMX or AVX512-BF16) or the GPU does; losses are float32.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from winnow.config import Optimiser
from winnow.data.batches import BatchSource
from winnow.errors import ArtifactError, TrainingError
from winnow.eta import duration
from winnow.hardware import has_fast_bf16
from winnow.random_streams import stream_seed
from winnow.records import renamed
from winnow.timing_lock import compute_lock

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
SECONDS_BETWEEN_LINES, SECONDS_WITHIN_AN_EPOCH = 4.0, 30.0
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
"""(model, images uint8 (B, 3, H, W), labels int64 (B,)) -> scalar float32."""
Row = dict[str, float]
"""One epoch of the curves: epoch, loss and what the driver added."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast, from which seed: one that no training of another kind has (winnow/random_streams.py)."""

    epochs: int
    steps_per_epoch: int
    optimiser: Optimiser
    seed: int

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted training goes on. `curves.jsonl` beside it can be followed while training runs."""

    folder: Path
    name: str

    @property
    def tensors(self) -> Path:
        """Weights and momentum."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def curves(self) -> Path:
        """One JSON object per finished epoch."""
        return self.folder / f"{self.name}.curves.jsonl"


def _nothing(_model: nn.Module, _step: int) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """What some methods do to the network within a step, whose number (from 1) they are told."""

    after_backward: Callable[[nn.Module, int], None] = _nothing
    """May add to the gradients."""
    after_step: Callable[[nn.Module, int], None] = _nothing
    """May hold weights in place."""


NO_HOOKS = Hooks()


@dataclass
class Epoch:
    """A finished epoch; its row may be added to while the generator waits."""

    number: int
    of: int
    row: Row


@dataclass
class Stop:
    """A signal that came while a step worked."""

    signal: int | None = None

    def raise_again(self) -> None:
        """Send it once more, now to whoever handles it outside a step."""
        assert self.signal is not None
        os.kill(os.getpid(), self.signal)


@contextlib.contextmanager
def deferred_stop() -> Iterator[Stop]:
    """Keep Ctrl-C and SIGTERM until the step is over: within it weights and momentum belong to no step.

    Signals reach the main thread alone; elsewhere nothing is kept.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def keep(number: int, _frame: FrameType | None) -> None:
        stop.signal = number

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast() -> bool:
    """Whether bf16 multiplies run in hardware here."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_fast_bf16()


def learning_rate_at(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter, 2017, arXiv 1608.03983, one cycle)."""
    warm = max(1, round(plan.optimiser.warmup * plan.steps))
    if step < warm and plan.optimiser.warmup > 0:
        return plan.optimiser.learning_rate * (step + 1) / warm
    progress = (step - warm) / max(1, plan.steps - warm)
    return plan.optimiser.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def fit(
    model: nn.Module,
    batches: BatchSource,
    loss: Loss,
    plan: Plan,
    checkpoint: Checkpoint | None = None,
    hooks: Hooks = NO_HOOKS,
) -> Generator[Epoch, None, list[Row]]:
    """Train `model` in place; yields after every epoch.

    Raises TrainingError when the loss is no longer a number, ArtifactError when a checkpoint is damaged.
    """
    where, autocast = device(), bf16_is_fast()
    model.to(where).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        _groups(model, plan.optimiser.weight_decay),
        lr=plan.optimiser.learning_rate,
        momentum=plan.optimiser.momentum,
        nesterov=plan.optimiser.momentum > 0,
    )
    state = _resume(checkpoint, model, optimiser) if checkpoint else _State()
    saved = told = time.monotonic()
    first, worked = state.step, 0.0
    while state.step < plan.steps:
        model.train()
        torch.manual_seed(stream_seed(plan.seed, "augmentation", state.step))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(state.step, plan)
        with compute_lock(), deferred_stop() as stop:
            began = time.monotonic()  # what was waited for another process is no work
            images_BCHW, labels_B = (part.to(where, non_blocking=True) for part in batches.at(state.step))
            with torch.autocast(where.type, dtype=torch.bfloat16, enabled=autocast):
                value = loss(model, images_BCHW, labels_B)
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            state.step += 1
            hooks.after_backward(model, state.step)
            optimiser.step()
            hooks.after_step(model, state.step)
            state.loss_sum += float(value.detach())
            worked += time.monotonic() - began
        left = worked / (state.step - first) * (plan.steps - state.step)
        if not math.isfinite(state.loss_sum):
            raise TrainingError(
                f"the loss is no longer a number at step {state.step} of {plan.steps} "
                f"(learning rate {plan.optimiser.learning_rate}); lower the learning rate in params.yaml"
            )
        if state.step % plan.steps_per_epoch == 0:
            number = state.step // plan.steps_per_epoch
            row = {"epoch": float(number), "loss": state.loss_sum / plan.steps_per_epoch}
            state.loss_sum = 0.0
            yield Epoch(number, plan.epochs, row)
            state.history.append(row)
            now = time.monotonic()
            if now - told > SECONDS_BETWEEN_LINES or number == plan.epochs:
                log.info("epoch %d/%d  %s  %s left", number, plan.epochs, _shown(row), duration(left))
                told = now
        elif time.monotonic() - told > SECONDS_WITHIN_AN_EPOCH:
            told = time.monotonic()
            log.info("step %d of %d  %s left", state.step, plan.steps, duration(left))
        due = stop.signal is not None or time.monotonic() - saved > CHECKPOINT_SECONDS
        if checkpoint and (due or state.step % plan.steps_per_epoch == 0):
            _save(checkpoint, model, optimiser, state, tensors=due or state.step == plan.steps)
            saved = time.monotonic() if due else saved
        if stop.signal is not None:
            stop.raise_again()
    model.eval()
    return state.history


def drain(
    training: Generator[Epoch, None, list[Row]], look: Callable[[Epoch], None] = lambda _epoch: None
) -> list[Row]:
    """Run a training to its end, looking at every epoch, and return its curves, those from before a stop too."""
    while True:
        try:
            epoch = next(training)
        except StopIteration as end:
            curves: list[Row] = end.value
            return curves
        look(epoch)


def _shown(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and normalisation are not decayed."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@dataclass
class _State:
    step: int = 0
    loss_sum: float = 0.0
    history: list[Row] = field(default_factory=list)


def _save(
    checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, state: _State, tensors: bool
) -> None:
    """Curves after every epoch; weights, momentum and step together in one file, so that they cannot disagree."""
    checkpoint.folder.mkdir(parents=True, exist_ok=True)
    with renamed(checkpoint.curves) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in state.history), encoding="utf-8")
    if not tensors:
        return
    kept = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        kept |= {
            f"optimiser.{index}.{k}": v.cpu().contiguous() for k, v in slots.items() if isinstance(v, torch.Tensor)
        }
    meta = {"step": state.step, "loss_sum": state.loss_sum, "history": state.history}
    with renamed(checkpoint.tensors) as partial:
        save_file(kept, partial, metadata={"state": json.dumps(meta)})


def _resume(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    path = checkpoint.tensors
    if not path.is_file():
        return _State()
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as opened:
            meta = json.loads(opened.metadata()["state"])
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        packed = optimiser.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, slot = name.split(".", 2)
                packed["state"].setdefault(int(index), {})[slot] = value
        optimiser.load_state_dict(packed)
        state = _State(meta["step"], meta["loss_sum"], meta["history"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the checkpoint {path} is damaged ({' '.join(str(error).split())[:200]}); "
            "delete it to train from the start"
        ) from error
    log.info("going on from step %d", state.step)
    return state
