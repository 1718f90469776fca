"""The key `remove:` of a candidate: the amount to remove by pruning or factorizing, or the latency to reach."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from winnow.config.section import Count, Number, Positive, Section

Share = Annotated[Number, Field(gt=0, lt=1)]


class Latency(Section):
    """The target latency of one call on this machine, with all threads, for pruning channels."""

    ms: Positive | None = None
    """The p50 latency in ms."""
    share: Share | None = None
    """The alternative to `ms`: the share of the parent's latency to remove, in the same runtime and precision."""
    runtime: Literal["ort", "openvino"] = "openvino"
    """The runtime in which the latency is measured."""
    precision: Literal["f32", "bf16", "int8"] = "f32"
    """int8: each trial network is quantized with a few random images, which suffice to time it."""
    batch: Count = 1
    """The images per call."""

    @model_validator(mode="after")
    def _check_one_target(self) -> Latency:
        if (self.ms is None) == (self.share is None):
            raise ValueError("set one of ms (milliseconds per call) and share (of the parent's latency to remove)")
        if self.runtime == "ort" and self.precision == "bf16":
            raise ValueError("ONNX Runtime has no bf16 on the CPU; set runtime: openvino, or precision: f32")
        return self


class Remove(Section):
    """The amount to remove, one of these. All but `channels` search for the share of channels that reaches it."""

    channels: Share | None = None
    """The share of the channels, ranked over the whole network."""
    parameters: Share | None = None
    """The share of the parameters."""
    macs: Share | None = None
    """The share of the multiply-adds."""
    latency: Latency | None = None
    """A latency, which is measured for each trial."""

    @model_validator(mode="after")
    def _check_one_goal(self) -> Remove:
        if len(self.goal) != 1:
            raise ValueError("set exactly one of channels, parameters, macs and latency, as in {macs: 0.5}")
        return self

    @property
    def goal(self) -> dict[str, float | Latency]:
        """Return the one name that is set, with its value."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}
