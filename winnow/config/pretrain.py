"""`pretrain:`: the backbone and how it learns without labels. The method's name picks the model below it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from winnow.config.backbones import Backbone
from winnow.config.section import Augmentation, Count, Optimiser, Positive, Section, Seed


class _Pretraining(Section):
    backbone: Backbone = "resnet8"
    """resnet8, resnet18 or another torchvision classifier."""
    seed: Seed = 0


class _Trained(_Pretraining):
    epochs: Count
    batch_size: Count
    optimiser: Optimiser
    augmentation: Augmentation
    monitor_every: Count = 5
    """Epochs between two looks at kNN accuracy and the spread of the embeddings."""


class NoPretraining(_Pretraining):
    """Random initial weights, for comparison. Settings of a training are passed over, so that they may stay."""

    method: Literal["none"]

    @model_validator(mode="before")
    @classmethod
    def _trains_nothing(cls, raw: Any) -> Any:
        of_trainings = set(_Trained.model_fields) - set(_Pretraining.model_fields)
        return {key: raw[key] for key in raw if key not in of_trainings} if isinstance(raw, dict) else raw


class RotNet(_Trained):
    """Tell by how much an image was turned: winnow/pretraining/rotnet.py."""

    method: Literal["rotnet"]


class SimCLR(_Trained):
    """Find the other crop of the same image: winnow/pretraining/simclr.py."""

    method: Literal["simclr"]
    temperature: Positive = 0.5
    projector_width: Count = 512
    projection_dim: Count = 128


Pretrain = Annotated[NoPretraining | RotNet | SimCLR, Field(discriminator="method")]
