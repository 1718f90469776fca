"""The section `drift:`: the folder of fresh images and the thresholds of a relevant shift."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from winnow.config.section import Count, Fraction, Number, Section


class Drift(Section):
    """The comparison of fresh images with the validation split (`winnow drift`)."""

    path: Annotated[str, Field(min_length=1)] = "data/none"
    """A folder of images, at any depth; data/none: no comparison."""
    min_images: Annotated[Count, Field(ge=20)] = 100
    """The smallest number of fresh images for a comparison."""
    alpha: Annotated[Number, Field(gt=0, lt=0.5)] = 0.01
    """The accepted rate of false alarms over all tests of one comparison."""
    min_separation: Fraction = 0.2
    """The smallest relevant separation: 2 AUC - 1 of a classifier of fresh against known images. 0.2 is an AUC of
    0.6."""
    min_class_shift: Fraction = 0.1
    """The smallest relevant total variation distance between the frequencies of the predicted classes."""
    min_confidence_shift: Fraction = 0.05
    """The smallest relevant change of the mean confidence."""
    ask_for: Count = 50
    """The number of images to list for labelling."""
