"""Figures of the machine that will serve, where that is another one: what check_host.py wrote there.

    host = read_host(Path("data/target.json"))
    speeds_on(host, {"dense": sha256, ...}, large=64)      as the benchmark's details have them

winnow/deploy/bundle.py sends winnow/deploy/check_host.py there, which imports nothing of winnow. A file is told by its
sha256, so figures of a candidate that has been made anew since count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from winnow.benchmark.measurement_error import largest_errors, measurement_errors
from winnow.benchmark.speedups import Row, best, best_float, ratio_figures, speedup
from winnow.config import Config
from winnow.config.section import NOTHING
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import Precision, Runtime
from winnow.errors import ArtifactError, DataError
from winnow.printable import printable
from winnow.records import Machine, StepRecord, sha256_of

FORMAT = 2
"""What check_host.py writes; 1 had no times by round, and so no intervals."""


Name = Annotated[str, Field(min_length=1, max_length=200)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Time = Annotated[float, Field(gt=0, le=1e9)]
"""Milliseconds."""


class _Strict(BaseModel):
    """Numbers are numbers, finite ones, and no key is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _HostCell(_Strict):
    """Which file, and how it runs."""

    candidate: Name
    sha256: Digest
    runtime: Runtime
    precision: Precision
    batch: Count
    threads: Count


class HostRow(_HostCell):
    """One cell that was timed there."""

    agreement: Annotated[float, Field(ge=0, le=1)]
    p50_ms: Time
    round_ms: Annotated[tuple[Time, ...], Field(min_length=1)]
    p95_ms: Time | None
    images_per_s: Annotated[float, Field(gt=0)]
    samples: Count
    spread: Annotated[float, Field(ge=0)]
    screened: bool = False


class RefusedCell(_HostCell):
    """One cell that was not timed there."""

    reason: str


class HostMachine(Machine):
    """The machine itself; its memory is 0 where its system does not tell."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    threads: Count
    memory_gb: Annotated[float, Field(ge=0)]


class TargetMeasurements(_Strict):
    """What check_host.py wrote."""

    format: Literal[2]
    machine: HostMachine
    large_batch: Count
    rows: tuple[HostRow, ...]
    refused: tuple[RefusedCell, ...]

    def rows_of(self, digests: Mapping[str, str]) -> list[Row]:
        """Rows of those files alone, under their present names; `digests`: candidate -> sha256."""
        names: dict[str, list[str]] = {}
        for name, digest in digests.items():
            names.setdefault(digest, []).append(name)
        return [
            {
                **row.model_dump(exclude={"sha256", "agreement"}, exclude_defaults=True),
                "candidate": name,
                "layout": "file",
            }
            for row in self.rows
            for name in names.get(row.sha256, [])
        ]


class _Versioned(BaseModel):
    """The format alone, whatever else there is."""

    format: Any = None


def read_host(path: Path) -> TargetMeasurements:
    """Raises DataError, which names the file and the key, when it is not what check_host.py writes."""
    try:
        text = path.read_bytes()
        found = _Versioned.model_validate_json(text).format
        if found != FORMAT:
            raise DataError(
                f"{path} is not what check_host.py writes (at format: it is {printable(repr(found)[:50])}, this winnow "
                f"reads {FORMAT}); run winnow export DIR --candidates, and the check_host.py that it writes on the "
                "machine that will serve"
            )
        return TargetMeasurements.model_validate_json(text)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top"
        is_plain = isinstance(first["input"], int | float | bool | None)
        value = f", it is {first['input']!r}" if is_plain and first["type"] != "missing" else ""
        raise DataError(
            f"{path} is not what check_host.py writes (at {printable(where)}: {first['msg']}{value}); take the "
            "host.json that it wrote, unchanged, or run it again"
        ) from error


def target_file(config: Config, root: Path) -> Path | None:
    """Return the file that benchmark.target names, in the project's folder `root`; None: this machine serves."""
    return None if config.benchmark.target == NOTHING else root / config.benchmark.target


def target_digest(config: Config, root: Path) -> str | None:
    """Return the digest of the figures that gates go by; None: this machine's. `root`: the project's folder."""
    path = target_file(config, root)
    return None if path is None else sha256_of(path)


def read_target(config: Config, root: Path) -> TargetMeasurements | None:
    """Return the machine whose figures gates go by; None: this one. Raises DataError for a file of another kind."""
    path = target_file(config, root)
    return None if path is None else read_host(path)


def speeds_on(
    host: TargetMeasurements, digests: Mapping[str, str], large: int, identical: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """{best, candidates, measurement_error}, as the benchmark's details have them, from that machine's rows alone.

    A candidate that was not timed there has None and {}, and without dense's times nobody has a speed-up. `identical`:
    pairs of candidates with the same graph, whose times tell the measurement error. Raises ArtifactError where batches
    of another size were timed.
    """
    if host.large_batch != large:
        raise ArtifactError(
            f"the figures of {host.machine.cpu} are of batches of {host.large_batch}, benchmark.large_batch is "
            f"{large}; export again and run check_host.py there"
        )
    rows = host.rows_of(digests)
    bests = {name: {"latency": best(rows, name, 1), "throughput": best(rows, name, large)} for name in digests}
    pairs = [pair for pair in identical if set(pair) <= digests.keys()]
    errors = measurement_errors(rows, pairs)
    largest = largest_errors(errors)
    figures = {name: _figures(rows, bests[name], large, largest) for name in digests}
    return {"best": bests, "candidates": figures, "measurement_error": errors}


def serving_speeds(config: Config, timed: StepRecord, records: Mapping[str, StepRecord], root: Path) -> dict[str, Any]:
    """Return {machine, is_target, best, candidates}: times of the machine that will serve.

    That is this one, or the one of benchmark.target, a path in the project's folder `root`.
    """
    host = read_target(config, root)
    if host is None:
        assert timed.machine is not None
        found = {key: {name: timed.details[key][name] for name in records} for key in ("best", "candidates")}
        found["measurement_error"] = timed.details["measurement_error"]
        return {"machine": timed.machine.model_dump(mode="json"), "is_target": False, **found}
    digests = {
        name: next((artifact.sha256 for artifact in record.artifacts if artifact.name == MODEL), "missing")
        for name, record in records.items()
    }
    identical = [tuple(pair) for pair in timed.details["identical_graphs"]]
    found = speeds_on(host, digests, config.benchmark.large_batch, identical)
    return {"machine": host.machine.model_dump(mode="json"), "is_target": True, **found}


def _figures(
    rows: list[Row], own: Mapping[str, Row | None], large: int, errors: Mapping[int, float]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for what, batch, key in (("latency", 1, "p50_ms"), ("throughput", large, "images_per_s")):
        row, base = own[what], best_float(rows, batch)
        if row is None:
            continue
        found["best/latency_ms" if what == "latency" else "best/throughput_ips"] = row[key]
        if base is not None:
            found |= ratio_figures(f"speedup/float_b{batch}", speedup(base, row, errors.get(batch, 0.0)))
    return found
