"""The section `benchmark:`: the runtimes to time and the number of samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.section import NO_FILE, Integer, Number, Section

MIN_INTERVAL_ROUNDS = 6
"""The fewest rounds for a 95 % interval of the median: with fewer even the full range covers less."""


class Benchmark(Section):
    """The runtimes, precisions and batch sizes to time, and the number of samples."""

    grid: Literal["quick", "full"] = "quick"
    """quick: every file in ONNX Runtime and OpenVINO, and dense in PyTorch; large batches and compiled PyTorch with all
    threads only. full: every candidate in every runtime, with one thread and with all."""
    target: str = NO_FILE
    """The measurements of check_host.py on the machine that will serve, set by `winnow check-host`; gates then use only
    these. data/none: this machine serves."""
    large_batch: Annotated[Integer, Field(ge=2, le=4096)] = 64
    """The images per call at which throughput is measured."""
    samples: Annotated[Integer, Field(ge=20)] = 200
    """The smallest number of timed calls for each latency at batch 1; a p95 needs 200."""
    rounds: Annotated[Integer, Field(ge=MIN_INTERVAL_ROUNDS)] = 20
    """The number of rounds in which the fastest cases are compared. A confidence interval needs 6."""
    warm_up_ms: Annotated[Number, Field(ge=0)] = 100.0
    """The duration of untimed calls before the timed ones, at least one call."""
    timed_ms: Annotated[Number, Field(ge=0)] = 50.0
    """The shortest duration of the timed calls of one round, so that an interruption does not move their median."""
