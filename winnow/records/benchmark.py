"""Details of the record of the benchmark: timed rows, what they give for each candidate, and what could not be timed.

A case is a candidate in a runtime, at a precision, with a batch size and a number of threads. A row is a timed case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from winnow.records.model import RecordModel, optional
from winnow.records.step_record import StepRecord

Runtime = Literal[
    "eager",
    "compile",
    "compile-autotune",
    "ort",
    "openvino",
    "openvino-throughput",
    "eager-cuda",
    "ort-cuda",
    "ort-tensorrt",
]
Precision = Literal["f32", "bf16", "int8", "int8-bf16"]
Layout = Literal["contiguous", "channels_last", "file"]
SpeedMetric = Literal["latency", "throughput"]
"""One image at a time, or large batches."""


@dataclass(frozen=True)
class BenchmarkCase:
    """One case of the benchmark: the candidate, its runtime and precision, the batch and the threads."""

    candidate: str
    runtime: Runtime
    precision: Precision
    layout: Layout
    batch: int
    threads: int


class CaseRecord(RecordModel):
    """The fields of a case, in every record of one."""

    candidate: str
    runtime: Runtime
    precision: Precision
    layout: Layout
    batch: int
    threads: int

    @property
    def case(self) -> BenchmarkCase:
        """The case."""
        return BenchmarkCase(self.candidate, self.runtime, self.precision, self.layout, self.batch, self.threads)


class BenchmarkRow(CaseRecord):
    """A timed case."""

    p50_ms: float
    """Median of all timed calls."""
    p95_ms: float | None
    """None with too few calls."""
    images_per_s: float
    samples: int
    round_ms: tuple[float, ...] = ()
    """Median call of each round."""
    spread: float
    """(largest - smallest) / p50 of the rounds."""
    inner_spread: float = 0.0
    """The same without the fastest and the slowest round."""
    screened: bool = optional(False)
    """True where the case was timed in the first, short pass alone."""


class ProcessFootprint(RecordModel):
    """Start-up and memory of one file in a process of its own."""

    candidate: str
    runtime: Runtime
    precision: Precision
    import_ms: float
    load_ms: float
    first_call_ms: float
    peak_mb: float


class Int8Coverage(RecordModel):
    """The share of multiply-adds that a runtime executes in int8."""

    candidate: str
    runtime: Runtime
    precision: Precision
    int8_share: float
    kernels: dict[str, float]
    """Kernel -> share of the multiply-adds."""


class RefusedCase(CaseRecord):
    """A case that was not timed because its answers differ from the file's own."""

    agreement: float
    needed: float
    images: int


class AbsentCase(RecordModel):
    """A runtime or precision that this machine lacks; `all` stands for every one."""

    runtime: Runtime | Literal["all"]
    precision: Precision | Literal["all"]
    reason: str


Value = TypeVar("Value")


class ByMetric(RecordModel, Generic[Value]):
    """A value for both metrics of speed."""

    latency: Value | None
    throughput: Value | None

    def of(self, metric: SpeedMetric) -> Value | None:
        """Return the value for one metric."""
        return self.latency if metric == "latency" else self.throughput


class PeakShares(ByMetric[float]):
    """Share of the processor's peak that a candidate reaches; None where it was not timed or the peak is not known."""

    latency: float | None = optional()
    throughput: float | None = optional()


class BestRows(ByMetric[BenchmarkRow]):
    """A candidate's fastest rows as a file; None where it was timed on no runtime."""


class Baselines(RecordModel):
    """The rows of dense that speed-ups are given against."""

    eager: BenchmarkRow
    pytorch: BenchmarkRow
    float: BenchmarkRow


class Attribution(RecordModel):
    """The factors of a speed-up over eager f32; their product is `total`."""

    batch: int
    on: Runtime
    threads: int
    ends_in: Precision
    ancestor: str
    """The float network that the file was made from."""
    ms: list[float]
    """p50 of the start and after each factor."""
    runtime: float
    structure: float
    precision: float
    total: float


class Attributions(ByMetric[Attribution]):
    """The factors for both metrics; None where a row between the two is missing."""


class MeasurementError(RecordModel):
    """Two files with the same graph in one case: by which fraction their times differ."""

    candidates: tuple[str, str]
    runtime: Runtime
    precision: Precision
    threads: int
    batch: int
    error: float


class BenchmarkConditions(RecordModel):
    """The conditions of the benchmark."""

    images_checked: int
    needed_agreement: dict[Precision, float]
    threads: int
    image_size: int


class BenchmarkDetails(RecordModel):
    """Everything that was timed."""

    rows: list[BenchmarkRow]
    processes: list[ProcessFootprint]
    executed: list[Int8Coverage]
    peaks: dict[Precision, float]
    """Multiply-adds per second."""
    peak_share: dict[str, PeakShares]
    refused: list[RefusedCase]
    absent: list[AbsentCase]
    candidates: dict[str, dict[str, int | float]]
    """Candidate -> flat metrics: best/latency_ms, speedup/float_b1, ..."""
    identical_graphs: list[tuple[str, str]]
    measurement_error: list[MeasurementError]
    best: dict[str, BestRows]
    baselines: dict[str, Baselines]
    """"b1" and "b64" -> rows."""
    attribution: dict[str, Attributions]
    conditions: BenchmarkConditions


BenchmarkRecord = StepRecord[BenchmarkDetails]
