"""What may change in an image without changing its class: `data.mirrors`, `data.colour`, `data.scale`, `data.up`.

Only who knows the images can say it, and augmentations and RotNet rest on it. So one switch each says it for every
training: it is set where params.yaml is loaded, in all augmentations at once, of pretraining, fine-tuning, recoveries
and the trials of a search. A switch that is true leaves the augmentations as they are.
"""

from __future__ import annotations

from typing import Any, TypeVar

from winnow.config.data import Data
from winnow.config.section import Augmentation, Section

S = TypeVar("S", bound=Section)


def augmentation_for(data: Data, augmentation: Augmentation) -> Augmentation:
    """Return the augmentation without what would change the class of these images."""
    changes: dict[str, Any] = {}
    if not data.mirrors:
        changes["flip"] = False
    if not data.colour:
        changes |= {"jitter": 0.0, "grayscale": 0.0}
    if not data.scale:
        changes["crop_scale_min"] = 1.0
    return augmentation.model_copy(update=changes)


def with_invariances(data: Data, section: S) -> S:
    """Return the section with every augmentation in it, at any depth, changed by `augmentation_for`."""
    changes = {name: _changed(data, getattr(section, name)) for name in type(section).model_fields}
    return section.model_copy(update=changes)


def _changed(data: Data, value: Any) -> Any:
    if isinstance(value, Augmentation):
        return augmentation_for(data, value)
    if isinstance(value, Section):
        return with_invariances(data, value)
    if isinstance(value, dict):
        return {name: _changed(data, item) for name, item in value.items()}
    return value


def pretraining_problem(data: Data, method: str) -> str:
    """Return why a pretraining method cannot learn from such images; empty where it can."""
    if method == "rotnet" and not data.up:
        return (
            "rotnet tells by how much an image was turned, which shows nothing where images have no upright "
            "orientation (data.up: false); set simclr, or none"
        )
    if method == "simclr" and not (data.colour or data.scale):
        return (
            "simclr tells an image by two different views of it, which there are none of with data.colour: false and "
            f"data.scale: false; set {'rotnet, or none' if data.up else 'none'}"
        )
    return ""
