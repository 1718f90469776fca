"""Define the model of each section of params.yaml: frozen, no unknown keys, no silent conversion of text to numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NO_FILE = "data/none"
"""An empty file that stands for "no file", since a DVC dependency must be a path."""


class Section(BaseModel):
    """A frozen part of params.yaml; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


def _check_number(value: Any) -> Any:
    """Raise ValueError for text and booleans. YAML 1.1 reads 1e-1 as text (it wants 1.0e-1), which the message says."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            raise ValueError(f"expected a number, got the text {value!r}") from None
        raise ValueError(
            f"YAML reads {value} as text; write it with a decimal point and a signed exponent, as in 1.0e-1"
        )
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_check_number)]
Integer = Annotated[int, BeforeValidator(_check_number)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Integer, Field(ge=1)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]
"""A seed that numpy's and torch's generators both accept."""


def steps_per_epoch(images: int, batch_size: int, epochs: int, min_steps: int) -> int:
    """Return the steps of one epoch: a pass over the images, or more where `epochs` passes have too few steps.

    Every training and every forecast uses it, so that both count in the same way.
    """
    return max(1, images // batch_size, -(-min_steps // epochs))


class Augmentation(Section):
    """The random views of a training image (winnow/data/augmentation.py)."""

    crop_scale_min: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """The smallest share of the image's area that a random crop keeps; 1.0: no crop."""
    flip: bool = True
    """True: half of the views are mirrored left to right."""
    jitter: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """The strength of brightness, contrast and saturation changes; the hue changes by a quarter of it."""
    grayscale: Fraction = 0.0
    """The share of views without colour."""


class Optimiser(Section):
    """SGD with Nesterov momentum, a linear warm-up and a cosine to zero."""

    learning_rate: Positive
    """The highest learning rate, reached after the warm-up."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """The momentum of SGD."""
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    """The weight decay of SGD."""
    warmup: Fraction = 0.1
    """The share of all steps during which the learning rate rises from zero."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """The factor between the learning rates of neighbouring blocks, from the head down to the first; 1: one rate for
    all."""
