"""`promotion:`: what a candidate must show before it may serve, and what then makes one better than another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.section import Fraction, Number, Positive, Section


class Gates(Section):
    """All must pass. The words are those of docs/measuring.md."""

    max_drop_points: Annotated[Number, Field(ge=0, le=100)] = 1.0
    """Top-1 below the better of dense and dense-kd, in points; the interval's worst end within twice this."""
    max_macro_f1_drop_points: Annotated[Number, Field(ge=0, le=100)] = 2.0
    """The same for the mean F1 of the classes, which a rare class moves as much as a common one."""
    min_agreement: Fraction = 0.7
    """Share of validation images, labelled or not, on which child and dense give the same answer."""
    max_size_ratio: Annotated[Number, Field(gt=0)] = 0.5
    """File size as a share of dense's."""
    min_int8_share: Fraction = 0.9
    """Of an int8 file: share of its multiply-adds that the runtime which serves executes in int8."""
    min_speedup: Positive = 1.2
    """Against dense as the best float of any precision and runtime, on the objective's batch."""


class Promotion(Section):
    """Gates, the objective that orders those who pass, and the champion's defence."""

    registered_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "auto"
    """Name in MLflow's registry; auto: named after the data."""
    gates: Gates = Gates()
    objective: Literal["latency", "throughput", "size"] = "latency"
    """latency: p50 at batch 1; throughput: images/s at the large batch; size: bytes on disk."""
    min_gain: Annotated[Number, Field(ge=0)] = 0.05
    """A challenger as accurate as the champion must be this much better on the objective, as a share."""
    approval: bool = False
    """Whether a person has to approve before a winner serves."""
    approval_hours: Positive = 72.0
    """How long the question stays open."""
