"""The section `benchmark:`: the runtimes to time and the number of samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.section import NO_FILE, Integer, Number, Section

MIN_INTERVAL_ROUNDS = 6
"""The fewest rounds for a 95 % interval of the median: with fewer even the full range covers less."""


class Benchmark(Section):
    """The grid of runtimes, precisions, batches and threads (winnow/benchmark/grid.py)."""

    grid: Literal["quick", "full"] = "quick"
    """quick: every file on ONNX Runtime and OpenVINO, PyTorch for the dense model. full: every file everywhere."""
    target: str = NO_FILE
    """The measurements of check_host.py on the target machine, the only ones that gates then use. `winnow check-host`
    sets it; data/none: this machine is the target."""
    large_batch: Annotated[Integer, Field(ge=2, le=4096)] = 64
    """The images per call at which throughput is measured."""
    samples: Annotated[Integer, Field(ge=20)] = 200
    """The timed calls behind each latency at batch 1; a p95 needs 200."""
    rounds: Annotated[Integer, Field(ge=MIN_INTERVAL_ROUNDS)] = 10
    """The rounds that compare the shortlisted cases, each once per round. A confidence interval needs 6."""
    warm_up_ms: Annotated[Number, Field(ge=0)] = 100.0
    """The duration of untimed calls before the timed ones, at least one call."""
