"""What every section of params.yaml has in common: frozen, no unknown keys, no silent conversion of text to numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NOTHING = "data/none"
"""An empty file: stands for no file of your own where DVC, which watches it, wants a path."""


class Section(BaseModel):
    """A frozen part of params.yaml; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


def _no_text(value: Any) -> Any:
    """YAML 1.1 reads 1e-1 as text (it wants 1.0e-1): say so instead of guessing."""
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


Number = Annotated[float, BeforeValidator(_no_text)]
Integer = Annotated[int, BeforeValidator(_no_text)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Integer, Field(ge=1)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]
"""What numpy's and torch's generators both take."""


def steps_of_epoch(images: int, batch_size: int, epochs: int, min_steps: int) -> int:
    """Return the steps of one epoch: full batches in a pass over the images, or more where `epochs` passes would be
    fewer than `min_steps` steps. Every training and every forecast counts with it."""
    return max(1, images // batch_size, -(-min_steps // epochs))


class Augmentation(Section):
    """Random views of a training image; see winnow/data/augmentation.py."""

    crop_scale_min: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """Smallest share of the image's area that a random crop keeps; 1.0: no crop."""
    flip: bool = True
    """Mirror half of the views left to right; false for digits, text and the like."""
    jitter: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Strength of brightness, contrast and saturation changes; the hue moves by a quarter of it."""
    grayscale: Fraction = 0.0
    """Share of the views without colour."""


class Optimiser(Section):
    """SGD with Nesterov momentum, a linear warm-up and a cosine to zero."""

    learning_rate: Positive
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    warmup: Fraction = 0.1
    """Share of all steps during which the rate climbs from zero."""
