"""Measurements of the deployment machine, if it is not this one: the JSON file that check_host.py writes there.

    host = read_measurements(Path("data/target.json"))
    speeds_on_target(host, {"dense": sha256, ...}, large=64)

winnow/deploy/bundle.py exports winnow/deploy/check_host.py, which imports nothing of winnow, to run there. Files are
identified by their sha256, so measurements of a candidate that has changed since are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from winnow.benchmark.measurement_error import (
    REPEATED_DENSE,
    REPEATED_PAIR,
    largest_errors,
    measurement_errors,
)
from winnow.benchmark.speedups import best_float_row, best_row, ratio_metrics, speedup
from winnow.config import ROOT, Config
from winnow.config.section import NO_FILE
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ArtifactError, DataError
from winnow.printable import printable
from winnow.records import BenchmarkRecord, CandidateRecord, Machine, sha256_of
from winnow.records.benchmark import BenchmarkRow, BestRows, Precision, Runtime
from winnow.records.selection import ServingSpeeds

FORMAT_VERSION = 2
"""Version that check_host.py writes; version 1 had no times per round, so no intervals."""


Name = Annotated[str, Field(min_length=1, max_length=200)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]
"""Milliseconds."""


class _Strict(BaseModel):
    """A model without conversions, infinite numbers or unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _HostCase(_Strict):
    """A file and the way it runs."""

    candidate: Name
    sha256: Digest
    runtime: Runtime
    precision: Precision
    batch: Count
    threads: Count


class TargetRow(_HostCase):
    """A case that was timed on the target machine."""

    agreement: Annotated[float, Field(ge=0, le=1)]
    p50_ms: Milliseconds
    round_ms: Annotated[tuple[Milliseconds, ...], Field(min_length=1)]
    p95_ms: Milliseconds | None
    images_per_s: Annotated[float, Field(gt=0)]
    samples: Count
    spread: Annotated[float, Field(ge=0)]
    screened: bool = False


class RefusedTargetCase(_HostCase):
    """A case that was not timed on the target machine."""

    reason: str


class TargetMachine(Machine):
    """The target machine; its memory is 0 if its system does not report it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    threads: Count
    memory_gb: Annotated[float, Field(ge=0)]


class TargetMeasurements(_Strict):
    """The content of the file that check_host.py writes."""

    format: Literal[2]
    machine: TargetMachine
    large_batch: Count
    rows: tuple[TargetRow, ...]
    refused: tuple[RefusedTargetCase, ...]

    def rows_of(self, digests: Mapping[str, str]) -> list[BenchmarkRow]:
        """Return the rows of these files under their current names; `digests`: candidate -> sha256."""
        names: dict[str, list[str]] = {}
        for name, digest in digests.items():
            names.setdefault(digest, []).append(name)
        return [
            BenchmarkRow(**row.model_dump(exclude={"sha256", "agreement", "candidate"}), candidate=name, layout="file")
            for row in self.rows
            if row.candidate != REPEATED_DENSE
            for name in names.get(row.sha256, [])
        ]

    def repeated_rows(self, dense: str) -> list[BenchmarkRow]:
        """Return the rows of dense as it was timed a second time; `dense`: the sha256 of its file."""
        return [
            BenchmarkRow(**row.model_dump(exclude={"sha256", "agreement"}), layout="file")
            for row in self.rows
            if row.candidate == REPEATED_DENSE and row.sha256 == dense
        ]


class _Versioned(BaseModel):
    """The format version alone."""

    format: Any = None


def read_measurements(path: Path) -> TargetMeasurements:
    """Return the content of the file. Raises DataError with file and key if check_host.py did not write it."""
    try:
        text = path.read_bytes()
        version = _Versioned.model_validate_json(text).format
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} is not a file of check_host.py (format is {printable(repr(version)[:50])}, this winnow reads "
                f"{FORMAT_VERSION}); run winnow export DIR --candidates, and then the exported check_host.py on the "
                "target machine"
            )
        return TargetMeasurements.model_validate_json(text)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in first["loc"]) or "the top level"
        is_plain = isinstance(first["input"], int | float | bool | None)
        value = f", got {first['input']!r}" if is_plain and first["type"] != "missing" else ""
        raise DataError(
            f"{path} is not a file of check_host.py (at {printable(location)}: {first['msg']}{value}); use the "
            "host.json that it wrote, unchanged, or run it again"
        ) from error


def target_file(config: Config, root: Path) -> Path | None:
    """Return the file of benchmark.target in the project's folder `root`; None if this machine is the target."""
    return None if config.benchmark.target == NO_FILE else root / config.benchmark.target


def target_digest(config: Config, root: Path) -> str | None:
    """Return the digest of the measurements that gates use; None if this machine is the target."""
    path = target_file(config, root)
    return None if path is None else sha256_of(path)


def read_target(config: Config, root: Path) -> TargetMeasurements | None:
    """Return the target's measurements; None if this machine is the target. Raises DataError for another file."""
    path = target_file(config, root)
    return None if path is None else read_measurements(path)


def speeds_on_target(
    host: TargetMeasurements, digests: Mapping[str, str], large: int, identical: Sequence[tuple[str, str]] = ()
) -> ServingSpeeds:
    """Return the speeds on the target, from its rows alone.

    A candidate that was not timed there has no rows and no metrics; without dense's times there are no speed-ups.
    `identical`: pairs of candidates with the same graph, for the measurement error. Raises ArtifactError if the large
    batch differs.
    """
    if host.large_batch != large:
        raise ArtifactError(
            f"the measurements of {host.machine.cpu} are for batches of {host.large_batch}, but benchmark.large_batch "
            f"is {large}; export again and run check_host.py there"
        )
    rows = host.rows_of(digests)
    best_rows = {
        name: BestRows(latency=best_row(rows, name, 1), throughput=best_row(rows, name, large)) for name in digests
    }
    pairs = [REPEATED_PAIR, *(pair for pair in identical if set(pair) <= digests.keys())]
    errors = measurement_errors([*rows, *host.repeated_rows(digests.get(ROOT, ""))], pairs)
    largest = largest_errors(errors)
    metrics = {name: _target_metrics(rows, best_rows[name], large, largest) for name in digests}
    machine = Machine(**dict(host.machine))  # not TargetMachine: a record that is read again has plain ones
    return ServingSpeeds(machine=machine, is_target=True, best=best_rows, candidates=metrics, measurement_error=errors)


def serving_speeds(
    config: Config, timed: BenchmarkRecord, records: Mapping[str, CandidateRecord], root: Path
) -> ServingSpeeds:
    """Return the speeds on the deployment machine.

    That is this machine, or the one of benchmark.target, a path in the project's folder `root`.
    """
    host = read_target(config, root)
    if host is None:
        assert timed.machine is not None
        return ServingSpeeds(
            machine=timed.machine,
            is_target=False,
            best={name: timed.details.best[name] for name in records},
            candidates={name: timed.details.candidates[name] for name in records},
            measurement_error=timed.details.measurement_error,
        )
    digests = {
        name: next((artifact.sha256 for artifact in record.artifacts if artifact.name == MODEL), "missing")
        for name, record in records.items()
    }
    return speeds_on_target(host, digests, config.benchmark.large_batch, timed.details.identical_graphs)


def _target_metrics(
    rows: list[BenchmarkRow], own: BestRows, large: int, errors: Mapping[int, float]
) -> dict[str, float]:
    """Return best times and speed-ups over the best float of one candidate."""
    metrics: dict[str, float] = {}
    if own.latency is not None:
        metrics["best/latency_ms"] = own.latency.p50_ms
    if own.throughput is not None:
        metrics["best/throughput_ips"] = own.throughput.images_per_s
    for row, batch in ((own.latency, 1), (own.throughput, large)):
        baseline = best_float_row(rows, batch)
        if row is not None and baseline is not None:
            metrics |= ratio_metrics(f"speedup/float_b{batch}", speedup(baseline, row, errors.get(batch, 0.0)))
    return metrics
