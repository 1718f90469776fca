"""The training loop, a generator that yields after every epoch, so that its caller can measure and log.

    def monitor(epoch: Epoch) -> None:
        epoch.row["knn"] = ...                       # goes into the checkpoint and the curves

    curves = drain(fit(model, batches, loss, plan, Checkpoint(folder, name)), monitor)

Every step is a function of (seed, step): the batch, the augmentation's random numbers and dropout are drawn from a hash
of them (winnow/random_streams.py). So an interrupted training that resumes from its last checkpoint ends bit-identical
on a CPU with the same number of threads. Ctrl-C and SIGTERM write a checkpoint of the current step. Forward passes run
in bf16 where the processor (AMX or AVX512-BF16) or the GPU has hardware for it; losses are float32.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from winnow.config import Optimiser
from winnow.data.batches import BatchSource
from winnow.errors import ArtifactError, TrainingError
from winnow.eta import format_duration
from winnow.hardware import has_fast_bf16
from winnow.random_streams import stream_seed
from winnow.records import CurveRow, atomic_path
from winnow.timing_lock import compute_lock
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


@dataclass(frozen=True)
class Checkpoint:
    """Files from which an interrupted training resumes. `curves.jsonl` can be followed while training runs."""

    folder: Path
    name: str

    @property
    def tensors(self) -> Path:
        """The file of weights and momentum."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def curves(self) -> Path:
        """The file of the curves, one JSON object per finished epoch."""
        return self.folder / f"{self.name}.curves.jsonl"


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


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast() -> bool:
    """Return True if this machine multiplies bf16 in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_fast_bf16()


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
    optimiser = _sgd(model, plan.optimiser)
    state = _resume(checkpoint, model, optimiser) if checkpoint else _State()
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
            _save(checkpoint, model, optimiser, state, tensors=due or state.step == plan.steps)
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


def _check_finite(state: _State, plan: TrainingPlan) -> None:
    """Raise TrainingError when the loss is no longer a number."""
    if not math.isfinite(state.loss_sum):
        raise TrainingError(
            f"the loss is no longer a number at step {state.step} of {plan.steps} "
            f"(learning rate {plan.optimiser.learning_rate}); lower the learning rate in params.yaml"
        )


def _sgd(model: nn.Module, settings: Optimiser) -> torch.optim.SGD:
    return torch.optim.SGD(
        _parameter_groups(model, settings),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )


def _parameter_groups(model: nn.Module, settings: Optimiser) -> list[dict[str, Any]]:
    """Return the optimiser's groups: no weight decay for biases and normalisation; a rate for each block.

    `lr_scale` of a block is layer_decay to the number of blocks after it (as in BEiT, Bao et al. 2021, arXiv
    2106.08254).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    blocks = layer_blocks(model) if settings.layer_decay < 1 else {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((blocks.get(name, 0), parameter.ndim > 1), []).append(parameter)
    last = max((block for block, _ in groups), default=0)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if is_matrix else 0.0,
            "lr_scale": settings.layer_decay ** (last - block),
        }
        for (block, is_matrix), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


def layer_blocks(model: nn.Module) -> dict[str, int]:
    """Return the number of the block that each parameter belongs to, from 0 at the input; the head is the last.

    A block is an entry of a sequence of modules (layer1.0, features.3, blocks.2.0), or else a module of the network.
    """
    order: dict[str, int] = {}
    result = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        block = ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1]) or name
        result[name] = order.setdefault(block, len(order))
    return result


@dataclass
class _State:
    """The progress that a checkpoint holds beside weights and momentum."""

    step: int = 0
    loss_sum: float = 0.0
    history: list[CurveRow] = field(default_factory=list)


def _save(
    checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, state: _State, tensors: bool
) -> None:
    """Save the curves after every epoch; weights, momentum and step go into one file, so that they always agree."""
    checkpoint.folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(checkpoint.curves) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in state.history), encoding="utf-8")
    if not tensors:
        return
    contents = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        contents |= {
            f"optimiser.{index}.{k}": v.cpu().contiguous() for k, v in slots.items() if isinstance(v, torch.Tensor)
        }
    meta = {"step": state.step, "loss_sum": state.loss_sum, "history": state.history}
    with atomic_path(checkpoint.tensors) as partial:
        save_file(contents, partial, metadata={"state": json.dumps(meta)})


def _resume(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
    """Return the state of the checkpoint, and load its weights and momentum; a new state without a file."""
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
    log.info("resuming from step %d", state.step)
    return state
