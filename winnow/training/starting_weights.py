"""The weights that fine-tuning starts from, by arm: pretrained here, random, or from a file that the user brings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from winnow.config import Config
from winnow.config.section import NOTHING
from winnow.errors import ArtifactError
from winnow.models.backbones import WEIGHTS, Architecture
from winnow.models.foreign_weights import foreign_backbone
from winnow.records import read_record
from winnow.training.finetuning import State

SCRATCH, PRETRAINED, FOREIGN = "scratch", "pretrained", "weights"


@dataclass(frozen=True)
class StartingWeights:
    """Backbone weights of every arm, and the arm that `dense` comes from."""

    arms: dict[str, State | None]
    """None: random weights."""
    main: str


def starting_weights(config: Config, pretrained: Path, architecture: Architecture) -> StartingWeights:
    """Read the weights of all arms. Raises ArtifactError where a file is missing, damaged or of another backbone."""
    arms: dict[str, State | None] = {}
    if read_record(pretrained).parameters["method"] != "none":
        arms[PRETRAINED] = _backbone(pretrained / WEIGHTS)
    arms[SCRATCH] = None
    if config.finetune.weights != NOTHING:
        arms[FOREIGN] = foreign_backbone(Path(config.finetune.weights), architecture)
    return StartingWeights(arms, FOREIGN if FOREIGN in arms else next(iter(arms)))


def _backbone(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is missing or damaged ({error}); delete its folder and run winnow again"
        ) from error
    return state
