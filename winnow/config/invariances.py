"""Apply the invariances of the images (`data.mirrors`, `data.colour`, `data.scale`, `data.up`) to all augmentations.

They name the changes that keep an image's class. Only the user knows them, and augmentations and RotNet depend on them.
So each is one switch, applied when params.yaml is loaded to all augmentations: of pretraining, fine-tuning, recoveries
and search trials. A switch that is true leaves the augmentations unchanged.
"""

from __future__ import annotations

from typing import Any, TypeVar

from winnow.config.data import Data
from winnow.config.section import Augmentation, Section

S = TypeVar("S", bound=Section)


def restrict_augmentation(data: Data, augmentation: Augmentation) -> Augmentation:
    """Return the augmentation without the operations that would change the class of these images."""
    changes: dict[str, Any] = {}
    if not data.mirrors:
        changes["flip"] = False
    if not data.colour:
        changes |= {"jitter": 0.0, "grayscale": 0.0}
    if not data.scale:
        changes["crop_scale_min"] = 1.0
    return augmentation.model_copy(update=changes)


def apply_invariances(data: Data, section: S) -> S:
    """Return the section with every augmentation in it, at any depth, changed by `restrict_augmentation`."""
    changes = {name: _apply_to_value(data, getattr(section, name)) for name in type(section).model_fields}
    return section.model_copy(update=changes)


def _apply_to_value(data: Data, value: Any) -> Any:
    if isinstance(value, Augmentation):
        return restrict_augmentation(data, value)
    if isinstance(value, Section):
        return apply_invariances(data, value)
    if isinstance(value, dict):
        return {name: _apply_to_value(data, item) for name, item in value.items()}
    return value


def unlabelled_problem(data: Data, method: str) -> str:
    """Return the reason why training on images without labels cannot work with such images, or ""."""
    if method == "fixmatch" and not (data.colour or data.scale):
        return (
            "fixmatch learns strong views of an image from weak ones, which data.colour: false and data.scale: false "
            "make equal; set propagation, or none"
        )
    return ""


def pretraining_problem(data: Data, method: str) -> str:
    """Return the reason why a pretraining method cannot learn from such images, or ""."""
    if method == "rotnet" and not data.up:
        return (
            "rotnet predicts by how much an image was rotated, which is not possible for images without an upright "
            "orientation (data.up: false); set simclr, or none"
        )
    if method == "simclr" and not (data.colour or data.scale):
        return (
            "simclr needs two different views of an image, which data.colour: false and data.scale: false rule out; "
            f"set {'rotnet, or none' if data.up else 'none'}"
        )
    return ""
