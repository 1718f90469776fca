"""`benchmark:`: which runtimes time the files, and how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from winnow.config.section import NOTHING, Count, Integer, Section


class Benchmark(Section):
    """The grid of runtimes, precisions, batches and threads; winnow/benchmarking.py says what each cell means."""

    grid: Literal["quick", "full"] = "quick"
    """quick: every file on ONNX Runtime and OpenVINO, PyTorch for the dense model. full: every file everywhere."""
    target: str = NOTHING
    """What check_host.py wrote on the machine that will serve; gates then use its figures alone. `winnow check-host`
    sets it; data/none: this machine serves."""
    large_batch: Annotated[Integer, Field(ge=2, le=4096)] = 64
    samples: Annotated[Integer, Field(ge=20)] = 200
    """Timed calls behind each latency figure at batch 1; a p95 is given from 200 on."""
    rounds: Count = 5
    """Interleaved rounds: every cell is visited once in each."""
