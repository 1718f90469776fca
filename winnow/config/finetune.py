"""`finetune:`: the label budget at work, from the pretrained backbone and from scratch under equal conditions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from winnow.config.section import (
    NOTHING,
    Augmentation,
    Count,
    Integer,
    Number,
    Optimiser,
    Positive,
    Section,
    Seed,
    steps_of_epoch,
)

FEW_LABELS = 500
"""With fewer labelled validation images figures are too uncertain to stand alone."""
LEAST_STEPS, LEAST_STEPS_OF_FEW = 600, 200
"""Of a fine-tuning, unless set: on FEW_LABELS labels and more, and on fewer."""


class Finetune(Section):
    """Both arms: same labels, steps, augmentation and tried rates."""

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Each seed draws labels, order and head anew, for both arms alike. `dense` comes from the first."""
    epochs: Count = 30
    min_steps: Literal["auto"] | Count = "auto"
    """With few labels, `epochs` would be over at once; at least this many steps are taken. auto: 200 with fewer than
    500 labels, which more steps would show a hundred times and more, else 600."""
    batch_size: Count = 128
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.03, 0.1)
    """Tried for each arm on the first seed; the better one on validation serves all seeds of that arm."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    augmentation: Augmentation = Augmentation()
    cross_validation: Literal["auto", "always", "never"] = "auto"
    """Whether dense's quality is also measured over all labels, each image by a network that has not seen it; auto:
    with fewer than 500 labelled validation images."""
    folds: Annotated[Integer, Field(ge=2, le=20)] = 5
    """Networks that are trained for it."""
    weights: str
    """A backbone of your own (.safetensors, or .pth read with weights_only=True) instead of the pretrained one."""

    @field_validator("seeds", "learning_rates")
    @classmethod
    def _distinct(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"values appear twice: {list(values)}")
        return values

    @field_validator("weights")
    @classmethod
    def _known_suffix(cls, value: str) -> str:
        if value != NOTHING and not value.endswith((".safetensors", ".pth", ".pt")):
            raise ValueError(f"{value!r} must end in .safetensors, .pth or .pt, or be {NOTHING}")
        return value

    def least_steps(self, labels: int) -> int:
        """Return `min_steps` as a number, for so many labelled images."""
        if self.min_steps == "auto":
            return LEAST_STEPS if labels >= FEW_LABELS else LEAST_STEPS_OF_FEW
        return self.min_steps

    def steps_for(self, labels: int) -> int:
        """Return the steps of one training on so many labelled images."""
        return self.epochs * steps_of_epoch(labels, self.batch_size, self.epochs, self.least_steps(labels))

    def crosses(self, choosing: int) -> bool:
        """Whether dense is cross-validated, with so many labelled validation images."""
        return self.cross_validation == "always" or (self.cross_validation == "auto" and choosing < FEW_LABELS)

    def optimiser(self, learning_rate: float) -> Optimiser:
        """The optimiser of one arm at one of the tried rates."""
        return Optimiser(learning_rate=learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
