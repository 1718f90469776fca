"""The weights that fine-tuning starts from, by arm: pretrained here, known weights, random, or from a user's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from winnow.config import Config
from winnow.config.section import NO_FILE
from winnow.errors import ArtifactError
from winnow.models.backbones import START_FILE, WEIGHTS_FILE, Architecture
from winnow.models.foreign_weights import load_foreign_backbone
from winnow.records import PretrainRecord
from winnow.training.finetuning import StateDict

SCRATCH, START, PRETRAINED, FOREIGN = "scratch", "start", "pretrained", "weights"


@dataclass(frozen=True)
class StartingWeights:
    """Backbone weights of every arm, and the arm that becomes `dense`."""

    arms: dict[str, StateDict | None]
    """None: random weights."""
    main: str


def starting_weights(config: Config, pretrained: Path, architecture: Architecture) -> StartingWeights:
    """Return the weights of all arms. Raises ArtifactError for a missing or damaged file, or another backbone."""
    arms: dict[str, StateDict | None] = {}
    record = PretrainRecord.read(pretrained)
    is_trained = record.parameters["method"] != "none"
    if is_trained:
        arms[PRETRAINED] = _backbone(pretrained / WEIGHTS_FILE)
    if record.details.start:
        arms[START] = _backbone(pretrained / (START_FILE if is_trained else WEIGHTS_FILE))
    arms[SCRATCH] = None
    if config.finetune.weights != NO_FILE:
        arms[FOREIGN] = _foreign(Path(config.finetune.weights), architecture)
    return StartingWeights(arms, FOREIGN if FOREIGN in arms else next(iter(arms)))


def _foreign(path: Path, architecture: Architecture) -> StateDict:
    try:
        return load_foreign_backbone(path, architecture)
    except ArtifactError as error:
        raise ArtifactError(f"finetune.weights: {error}") from error


def _backbone(path: Path) -> StateDict:
    try:
        state: StateDict = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} is missing or damaged ({error}); delete its folder and run winnow again"
        ) from error
    return state
