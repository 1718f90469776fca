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
    """Name of the candidate."""
    runtime: Runtime
    """Runtime."""
    precision: Precision
    """Precision in which the runtime computes."""
    layout: Layout
    """Memory layout in PyTorch; file for ONNX files."""
    batch: int
    """Images per call."""
    threads: int
    """Threads of a call."""

    @property
    def case(self) -> BenchmarkCase:
        """The case."""
        return BenchmarkCase(self.candidate, self.runtime, self.precision, self.layout, self.batch, self.threads)


class BenchmarkRow(CaseRecord):
    """A timed case."""

    p50_ms: float
    """Median of all timed calls, ms."""
    p95_ms: float | None
    """95th percentile, ms; None with too few calls."""
    images_per_s: float
    """Images per second."""
    samples: int
    """Number of timed calls."""
    round_ms: tuple[float, ...] = ()
    """Median of each round, ms."""
    spread: float
    """(largest - smallest) / p50 of the rounds' medians."""
    inner_spread: float = 0.0
    """The same without the fastest and the slowest round."""
    screened: bool = optional(False)
    """True where the case was timed in the first, short pass alone."""


class ProcessFootprint(RecordModel):
    """Start-up and memory of one file in a process of its own."""

    candidate: str
    """Name of the candidate."""
    runtime: Runtime
    """Runtime."""
    precision: Precision
    """Precision in which the runtime computes."""
    import_ms: float
    """Time to import the runtime, ms."""
    load_ms: float
    """Time to load the file, ms."""
    first_call_ms: float
    """Time of the first call, ms."""
    peak_mb: float
    """Peak memory of the process, MB."""


class Int8Coverage(RecordModel):
    """The share of multiply-adds that a runtime executes in int8."""

    candidate: str
    """Name of the candidate."""
    runtime: Runtime
    """Runtime."""
    precision: Precision
    """Precision in which the runtime computes."""
    int8_share: float
    """Share of the multiply-adds that are executed in int8."""
    kernels: dict[str, float]
    """Kernel -> share of the multiply-adds."""


class RefusedCase(CaseRecord):
    """A case that was not timed, since its predictions differ from those of the file in ONNX Runtime."""

    agreement: float
    """Share of images with the same prediction as the file in ONNX Runtime."""
    needed: float
    """The share that is needed."""
    images: int
    """Number of images that were compared."""


class AbsentCase(RecordModel):
    """A runtime or precision that this machine lacks; `all` stands for every one."""

    runtime: Runtime | Literal["all"]
    """Runtime, or all."""
    precision: Precision | Literal["all"]
    """Precision, or all."""
    reason: str
    """What this machine lacks."""


Value = TypeVar("Value")


class ByMetric(RecordModel, Generic[Value]):
    """A value for both metrics of speed."""

    latency: Value | None
    """For one image per call."""
    throughput: Value | None
    """For large batches."""

    def of(self, metric: SpeedMetric) -> Value | None:
        """Return the value for one metric."""
        return self.latency if metric == "latency" else self.throughput


class PeakShares(ByMetric[float]):
    """Share of the processor's peak; None where it was not timed, or the peak is not known."""

    latency: float | None = optional()
    """Share with one image per call."""
    throughput: float | None = optional()
    """Share with large batches."""


class BestRows(ByMetric[BenchmarkRow]):
    """A candidate's fastest rows as a file; None where no runtime could time it."""


class Baselines(RecordModel):
    """The rows of dense over which speed-ups are given."""

    eager: BenchmarkRow
    """PyTorch eager in float32."""
    pytorch: BenchmarkRow
    """The fastest float PyTorch."""
    float: BenchmarkRow
    """The fastest float precision and runtime."""


class Attribution(RecordModel):
    """The factors of the speed-up over PyTorch eager float32; their product is `total`."""

    batch: int
    """Images per call."""
    on: Runtime
    """Runtime of the candidate's fastest row."""
    threads: int
    """Threads of a call."""
    ends_in: Precision
    """Precision of that row."""
    ancestor: str
    """The float network that the file was made from."""
    ms: list[float]
    """p50 in ms at the start and after each factor."""
    runtime: float
    """Factor by the runtime."""
    structure: float
    """Factor by the smaller structure."""
    precision: float
    """Factor by the precision."""
    total: float
    """The whole speed-up."""


class Attributions(ByMetric[Attribution]):
    """The factors for both metrics; None where a row between the two is missing."""


class MeasurementError(RecordModel):
    """Difference between the times of two files with the same graph, in one case."""

    candidates: tuple[str, str]
    """Names of the two candidates."""
    runtime: Runtime
    """Runtime."""
    precision: Precision
    """Precision in which the runtime computes."""
    threads: int
    """Threads of a call."""
    batch: int
    """Images per call."""
    error: float
    """Difference of the times as a fraction."""


class BenchmarkConditions(RecordModel):
    """The conditions of the benchmark."""

    images_checked: int
    """Number of images whose predictions were compared before timing."""
    needed_agreement: dict[Precision, float]
    """Precision -> share of equal predictions that is needed."""
    threads: int
    """Threads of a call, at most."""
    image_size: int
    """Side of the images in pixels."""


class BenchmarkDetails(RecordModel):
    """Everything that was timed."""

    rows: list[BenchmarkRow]
    """Timed cases."""
    processes: list[ProcessFootprint]
    """Start-up and memory of each file in a process of its own."""
    executed: list[Int8Coverage]
    """Share of multiply-adds that runtimes execute in int8."""
    peaks: dict[Precision, float]
    """Precision -> multiply-adds per second that large matrix products reach."""
    peak_share: dict[str, PeakShares]
    """Candidate -> share of the processor's peak."""
    refused: list[RefusedCase]
    """Cases that were not timed, since their predictions differ."""
    absent: list[AbsentCase]
    """Runtimes and precisions that this machine lacks."""
    candidates: dict[str, dict[str, int | float]]
    """Candidate -> metrics: best/latency_ms, speedup/float_b1, ..."""
    identical_graphs: list[tuple[str, str]]
    """Pairs of candidates whose files have the same graph."""
    measurement_error: list[MeasurementError]
    """Differences of the times of such pairs."""
    best: dict[str, BestRows]
    """Candidate -> its fastest rows."""
    baselines: dict[str, Baselines]
    """"b1" or "b64" (batch size) -> rows of dense."""
    attribution: dict[str, Attributions]
    """Candidate -> factors of its speed-up."""
    conditions: BenchmarkConditions
    """Conditions of the benchmark."""


BenchmarkRecord = StepRecord[BenchmarkDetails]
