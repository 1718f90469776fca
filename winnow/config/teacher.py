"""The section `teacher:`: a large network with known weights that teaches the small ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from winnow.config.backbones import Backbone
from winnow.config.section import Integer, Section
from winnow.config.weights import NO_WEIGHTS, Weights, backbone_of, weights_file

InputSize = Literal["auto"] | Annotated[Integer, Field(ge=8, le=1024)]


class Teacher(Section):
    """The network whose embeddings of all images are computed once (winnow/steps/embed.py)."""

    weights: Weights = NO_WEIGHTS
    """Its weights by name, such as package:efficientnet-lite0; none: no teacher."""
    backbone: Literal["auto"] | Backbone = "auto"
    """The network that a file of weights belongs to; auto: the one that the weights name."""
    input_size: InputSize = "auto"
    """The side in pixels at which it takes images; auto: its own, but images are enlarged five times at most."""
    non_commercial: bool = False
    """True to accept weights whose licence excludes commercial use."""

    @model_validator(mode="after")
    def _check_backbone(self) -> Teacher:
        check_named_backbone(self.weights, self.backbone)
        return self

    @property
    def network(self) -> str:
        """Return the name of the backbone; "" without a teacher."""
        return backbone_of(self.weights) or ("" if self.backbone == "auto" else self.backbone)


def check_named_backbone(weights: str, backbone: str) -> None:
    """Raise ValueError where `backbone` is not that of the weights, or a file's is not named."""
    named = backbone_of(weights)
    if weights_file(weights) and backbone == "auto":
        raise ValueError(f"{weights} does not say which network it belongs to; name it in backbone")
    if named and backbone not in ("auto", named):
        raise ValueError(f"{weights} belongs to {named}, not to {backbone}; set backbone: auto")
