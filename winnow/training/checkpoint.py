"""Checkpoints of an interrupted training: weights, momentum and progress in one file, the curves beside it.

A file is complete or absent, and holds no pickle.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from winnow.errors import ArtifactError
from winnow.eta import RESUMING
from winnow.models.state_loading import load_state
from winnow.records import CurveRow, atomic_path

log = logging.getLogger(__name__)


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


@dataclass
class TrainingState:
    """The progress that a checkpoint holds beside weights and momentum."""

    step: int = 0
    loss_sum: float = 0.0
    history: list[CurveRow] = field(default_factory=list)


def save_checkpoint(
    checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, state: TrainingState, tensors: bool
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


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer) -> TrainingState:
    """Return the state of the checkpoint, and load its weights and momentum; a new state without a file.

    Raises ArtifactError where the file is damaged, or is of another network.
    """
    path = checkpoint.tensors
    if not path.is_file():
        return TrainingState()
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as opened:
            meta = json.loads(opened.metadata()["state"])
        load_state(model, {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        packed = optimiser.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, slot = name.split(".", 2)
                packed["state"].setdefault(int(index), {})[slot] = value
        optimiser.load_state_dict(packed)
        state = TrainingState(meta["step"], meta["loss_sum"], meta["history"])
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"the checkpoint {path} is damaged ({' '.join(str(error).split())[:200]}); "
            "delete it to train from the start"
        ) from error
    log.info("%s %d", RESUMING, state.step)
    return state
