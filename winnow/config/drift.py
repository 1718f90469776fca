"""`drift:`: where fresh images lie, and from when on a shift is worth a person's time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from winnow.config.section import Count, Fraction, Number, Section


class Drift(Section):
    """Fresh images are compared with the validation split, by the champion's own answers."""

    path: Annotated[str, Field(min_length=1)] = "data/none"
    """A folder of images, at any depth; data/none: nothing is compared."""
    min_images: Annotated[Count, Field(ge=20)] = 100
    """With fewer fresh images nothing is compared."""
    alpha: Annotated[Number, Field(gt=0, lt=0.5)] = 0.01
    """Share of false alarms that is accepted, over all tests of one look."""
    min_separation: Fraction = 0.2
    """2 AUC - 1 of a classifier that tells fresh from known images; 0.2 is an AUC of 0.6."""
    min_class_shift: Fraction = 0.1
    """Total variation distance of the predicted classes' frequencies."""
    min_confidence_shift: Fraction = 0.05
    """Change of the mean confidence."""
    ask_for: Count = 50
    """How many images to list when labels are wanted."""
