"""The section `promotion:`: the gates that a candidate must pass, the objective that ranks them, and approval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.section import Fraction, Number, Positive, Section


class Gates(Section):
    """The gates, all of which a candidate must pass; docs/measuring.md explains the terms."""

    max_drop_points: Annotated[Number, Field(ge=0, le=100)] = 1.0
    """The largest drop of top-1 from the better of dense and dense-kd, in points. The worst end of its confidence
    interval may reach twice this."""
    max_macro_f1_drop_points: Annotated[Number, Field(ge=0, le=100)] = 2.0
    """The same for macro F1, in which rare and common classes count alike."""
    min_agreement: Fraction = 0.7
    """The smallest share of validation images, with or without a label, on which candidate and dense predict the same
    class."""
    max_size_ratio: Annotated[Number, Field(gt=0)] = 0.5
    """The largest file size as a share of dense's."""
    min_int8_share: Fraction = 0.9
    """The smallest share of an int8 file's multiply-adds that the serving runtime executes in int8."""
    min_speedup: Positive = 1.2
    """The smallest speed-up over dense in its fastest float precision and runtime, at the objective's batch size."""


class Promotion(Section):
    """The gates, the objective that ranks candidates, and the comparison with the champion."""

    registered_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "auto"
    """The name in MLflow's model registry; auto: named after the data."""
    gates: Gates = Gates()
    """The conditions that a candidate must meet."""
    objective: Literal["latency", "throughput", "size"] = "latency"
    """latency: p50 at batch 1; throughput: images/s at the large batch; size: bytes on disk."""
    min_gain: Annotated[Number, Field(ge=0)] = 0.05
    """The relative gain on the objective by which a challenger must beat the champion if it is not more accurate."""
    approval: bool = False
    """True if a promotion needs manual approval."""
    approval_hours: Positive = 72.0
    """The hours until an approval request expires."""
