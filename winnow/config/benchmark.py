"""`benchmark:`: which runtimes time the files, and how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.section import NOTHING, Integer, Number, Section

ROUNDS_FOR_AN_INTERVAL = 6
"""Of fewer pairs not even smallest and largest make a 95 % interval of their median."""


class Benchmark(Section):
    """The grid of runtimes, precisions, batches and threads; winnow/benchmark/grid.py says what each cell means."""

    grid: Literal["quick", "full"] = "quick"
    """quick: every file on ONNX Runtime and OpenVINO, PyTorch for the dense model. full: every file everywhere."""
    target: str = NOTHING
    """What check_host.py wrote on the machine that will serve; gates then use its figures alone. `winnow check-host`
    sets it; data/none: this machine serves."""
    large_batch: Annotated[Integer, Field(ge=2, le=4096)] = 64
    samples: Annotated[Integer, Field(ge=20)] = 200
    """Timed calls behind each latency figure at batch 1; a p95 is given from 200 on."""
    rounds: Annotated[Integer, Field(ge=ROUNDS_FOR_AN_INTERVAL)] = 10
    """Rounds in which the cells that count are compared; every one is visited once in each. An interval takes 6."""
    warm_up_ms: Annotated[Number, Field(ge=0)] = 100.0
    """Untimed calls before the timed ones of each visit, at least one call."""
