"""The section `search:`: the budget and space in which `winnow search` generates candidates. No step reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from winnow.config.backbones import SCALABLE_BACKBONES
from winnow.config.section import Count, Integer, Number, Positive, Section, Seed

Structure = Literal["prune", "factorize", "student"]
MAX_MACS = 0.95
"""The largest share of dense's multiply-adds that a trial may keep."""


class Search(Section):
    """The budget, the objective and the kinds of trials of `winnow search`."""

    minutes: Positive = 30.0
    """The total minutes of work over all calls of one search. Trials that are running then are finished."""
    trials: Annotated[Integer, Field(ge=0)] = 0
    """The largest number of trials; 0: no limit."""
    objective: Literal["latency", "throughput", "size", "energy"] = "latency"
    """The cost to reduce. latency: ms per call at batch 1; throughput: images/s at benchmark.large_batch; size: MB;
    energy: mJ per image."""
    runtime: Literal["ort", "openvino", "openvino-throughput"] = "openvino"
    """The runtime of the cost. openvino-throughput divides a large batch among parallel streams."""
    max_drop_points: Annotated[Number, Field(gt=0, le=100)] = 1.0
    """The largest drop of top-1 from the better of dense and dense-kd that the selected trial may have, in points."""
    structures: Annotated[tuple[Structure, ...], Field(min_length=1)] = ("prune", "student")
    """The kinds of trials: pruned networks, networks of low rank, students."""
    int8: Literal["both", "always", "never"] = "both"
    """Whether trials are quantized: some (both), all (always) or none (never)."""
    epochs: Count = 20
    """The epochs of a trial's recovery; the first evaluation comes after a quarter of them."""
    min_steps: Count = 1200
    """The smallest number of steps of a trial's recovery."""
    learning_rate: Positive = 0.1
    """The learning rate of every trial's recovery."""
    batch_size: Count = 64
    """The images of one step of recovery."""
    least_macs: Annotated[Number, Field(gt=0, le=MAX_MACS)] = 0.1
    """The smallest share of dense's multiply-adds that a pruned or factorized network may keep."""
    student: str = "resnet8"
    """The backbone of students, which vary in width."""
    seed: Seed = 0
    """The seed of the sampler and of the trials."""

    @model_validator(mode="after")
    def _check_structures(self) -> Search:
        if len(set(self.structures)) < len(self.structures):
            raise ValueError("structures: duplicate values")
        return self

    @model_validator(mode="after")
    def _check_runtime(self) -> Search:
        if self.runtime == "openvino-throughput" and self.objective != "throughput":
            raise ValueError(f"runtime: openvino-throughput needs objective: throughput, not {self.objective}")
        return self

    @field_validator("student")
    @classmethod
    def _check_student(cls, value: str) -> str:
        if value not in SCALABLE_BACKBONES:
            raise ValueError(f"{value!r} has no widths to search; valid: {', '.join(SCALABLE_BACKBONES)}")
        return value
