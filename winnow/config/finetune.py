"""The section `finetune:`: training on the label budget, from the pretrained backbone and from scratch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from winnow.config.section import (
    NO_FILE,
    Augmentation,
    Count,
    Integer,
    Number,
    Optimiser,
    Positive,
    Section,
    Seed,
    steps_per_epoch,
)
from winnow.config.unlabelled import NoUnlabelled, Unlabelled

FEW_LABELS = 500
"""The number of labelled validation images below which a metric alone is too uncertain."""
DEFAULT_MIN_STEPS, DEFAULT_MIN_STEPS_FEW_LABELS = 600, 200
"""The default minimum of steps: with FEW_LABELS labels or more, and with fewer."""


class Finetune(Section):
    """The settings of fine-tuning. Both arms, from the pretrained backbone and from random weights, share them."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """The label seeds. Each draws label budget, order and head, the same for both arms. Dense is the network of the
    first seed."""
    epochs: Count = 30
    """Passes over the labelled images."""
    min_steps: Literal["auto"] | Count = "auto"
    """The smallest number of training steps; more than `epochs` give if there are few labels. auto: 200 with fewer than
    500 labels, else 600."""
    batch_size: Count = 128
    """The images of one step."""
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.03, 0.1)
    """The learning rates to try for each arm on the first seed. The one with the better top-1 on validation is used for
    all seeds."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """The factor between the learning rates of neighbouring blocks, from the head down to the first; 1: one rate for
    all. It keeps early layers of known weights as they are. The arm from scratch has one rate for all."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """The momentum of SGD."""
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    """The weight decay of SGD."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """The share of the target that is spread over all classes."""
    augmentation: Augmentation = Augmentation()
    """The random views of a training image."""
    cross_validation: Literal["auto", "always", "never"] = "auto"
    """When to cross-validate dense over all labels. auto: with fewer than 500 labelled validation images."""
    folds: Annotated[Integer, Field(ge=2, le=20)] = 5
    """The number of folds of the cross-validation; each trains one network."""
    unlabelled: Unlabelled = NoUnlabelled()
    """The training on images without labels that follows: none, propagation or fixmatch, or a mapping with the method's
    own settings. Its network becomes dense only where it is more accurate on validation."""
    weights: str
    """A backbone file of your own (.safetensors, .pth or .pt) in place of the pretrained one; data/none: no file."""

    @field_validator("seeds", "learning_rates")
    @classmethod
    def _check_distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"duplicate values: {list(values)}")
        return values

    @field_validator("weights")
    @classmethod
    def _check_suffix(cls, value: str) -> str:
        if value != NO_FILE and not value.endswith((".safetensors", ".pth", ".pt")):
            raise ValueError(f"{value!r} must end in .safetensors, .pth or .pt, or be {NO_FILE}")
        return value

    def resolve_min_steps(self, labels: int) -> int:
        """Return `min_steps` as a number, for this many labelled images."""
        if self.min_steps == "auto":
            return DEFAULT_MIN_STEPS if labels >= FEW_LABELS else DEFAULT_MIN_STEPS_FEW_LABELS
        return self.min_steps

    def steps_for(self, labels: int) -> int:
        """Return the steps of one training on this many labelled images."""
        return self.epochs * steps_per_epoch(labels, self.batch_size, self.epochs, self.resolve_min_steps(labels))

    def needs_cross_validation(self, validation_labels: int) -> bool:
        """Return whether dense is cross-validated, given the number of labelled validation images."""
        return self.cross_validation == "always" or (self.cross_validation == "auto" and validation_labels < FEW_LABELS)

    def optimiser(self, learning_rate: float) -> Optimiser:
        """Return the optimiser settings for a learning rate."""
        return Optimiser(
            learning_rate=learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
        )

    def for_arm(self, has_weights: bool) -> Finetune:
        """Return the settings of an arm: without layer_decay where it starts from random weights."""
        return self if has_weights else self.model_copy(update={"layer_decay": 1.0})
