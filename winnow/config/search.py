"""`search:`: how `winnow search` looks for candidates that nobody wrote down. No step reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from winnow.config.backbones import IN_WIDTHS
from winnow.config.section import Count, Integer, Number, Positive, Section, Seed

Structure = Literal["prune", "factorize", "student"]
MOST_MACS = 0.95
"""Share of dense's multiply-adds above which nothing is tried."""


class Search(Section):
    """Budget, objective, and what may be tried."""

    minutes: Positive = 30.0
    """Of work in all, over every call of the same name. What is under way at its end is finished."""
    trials: Annotated[Integer, Field(ge=0)] = 0
    """At most so many; 0: as many as the minutes hold."""
    objective: Literal["latency", "throughput", "size", "energy"] = "latency"
    """latency: ms a call at batch 1; throughput: images/s at benchmark.large_batch; size: MB; energy: mJ an image."""
    runtime: Literal["ort", "openvino", "openvino-throughput"] = "openvino"
    """openvino-throughput deals a large batch out to streams that run side by side."""
    max_drop_points: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """Allowance: points of top-1 below the better of dense and dense-kd that the chosen point may lose."""
    structures: Annotated[tuple[Structure, ...], Field(min_length=1)] = ("prune", "student")
    int8: Literal["both", "always", "never"] = "both"
    epochs: Count = 10
    """Of a trial's recovery; a first look takes a quarter of them."""
    min_steps: Count = 600
    """Of a trial's recovery at least, as in `recovery`; of a first look a quarter."""
    learning_rate: Positive = 0.05
    batch_size: Count = 128
    least_macs: Annotated[Number, Field(gt=0, le=MOST_MACS)] = 0.1
    """Share of dense's multiply-adds below which nothing is pruned or factorized."""
    student: str = "resnet8"
    """Students are of this backbone, in widths."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _different(self) -> Search:
        if len(set(self.structures)) < len(self.structures):
            raise ValueError("structures: one of them is there twice")
        return self

    @model_validator(mode="after")
    def _batch_to_deal_out(self) -> Search:
        if self.runtime == "openvino-throughput" and self.objective != "throughput":
            raise ValueError(f"runtime: openvino-throughput goes with objective: throughput, not {self.objective}")
        return self

    @field_validator("student")
    @classmethod
    def _in_widths(cls, value: str) -> str:
        if value not in IN_WIDTHS:
            raise ValueError(f"{value!r} does not come in widths; valid: {', '.join(IN_WIDTHS)}")
        return value
