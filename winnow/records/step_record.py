"""The record that each step writes beside its files: one `record.json`, read by the next step, by tracking and by
people.

A record holds no wall time and no path outside its folder: the same inputs give the same bytes, so DVC can stop where
nothing changed. The one exception is the benchmark, whose figures are times; its record names the machine.

    with publish(out) as folder:            # a temporary name beside `out`, renamed when all went well
        ...                                 # write files into `folder`
        write_record(folder, record)
    IngestRecord.read(out).details.classes  # `details` has a type of its own for each step

`metrics` are flat numbers with the same names for all candidates; `details` is everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import ValidationError

from winnow.errors import ArtifactError
from winnow.records.artifact_files import read_json, sha256_of, write_json
from winnow.records.machine import Machine
from winnow.records.model import RecordModel, describe_first_error

RECORD = "record.json"
FORMAT = 1


class Artifact(RecordModel):
    """A file of a step, by its name inside the step's folder."""

    name: str
    """Name of the file, relative to the step's folder."""
    sha256: str
    """Digest of the file."""
    bytes: int
    """Size of the file."""


Details = TypeVar("Details", bound=RecordModel, covariant=True)


class StepRecord(RecordModel, Generic[Details]):
    """The settings, inputs, metrics, details and files of one step."""

    step: str
    """Name of the step: ingest, pretrain, finetune, compress, benchmark, select, refit or report."""
    name: str
    """Name of the candidate for finetune and compress, else that of the step."""
    parameters: dict[str, Any]
    """The step's section of params.yaml, with all defaults filled in."""
    inputs: dict[str, str]
    """Digests of the records or files that the step read."""
    metrics: dict[str, float]
    """Single numbers, with the same names for all candidates: quality/top1, size/mb, ..."""
    details: Details
    """Everything that is not a single number, such as scores per class, curves and reasons. Differs by step."""
    warnings: tuple[str, ...] = ()
    """Warnings of the step."""
    artifacts: tuple[Artifact, ...] = ()
    """Files that the step wrote."""
    machine: Machine | None = None
    """The machine that was timed; only the benchmark has one."""
    format: int = FORMAT
    """Version of the record's format."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the record in a step's folder.

        Raises ArtifactError when it is missing, damaged, of another step or of another version of winnow.
        """
        return cls.parse(read_raw_record(folder), folder)

    @classmethod
    def parse(cls, raw: object, folder: Path) -> Self:
        """Return the record from the content of its file in `folder`. Raises ArtifactError as `read`."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ArtifactError(
                f"{folder / RECORD} is damaged, or of another version of winnow ({describe_first_error(error)}); "
                "delete its folder and run winnow again"
            ) from error


def read_raw_record(folder: Path) -> object:
    """Return the content of a record's file. Raises ArtifactError when it is missing or of another version."""
    path = folder / RECORD
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise ArtifactError(f"{path} was written by another version of winnow; delete its folder and run winnow again")
    return raw


AnyRecord = StepRecord[RecordModel]
"""The record of any step, where its details do not matter."""


def write_record(folder: Path, record: AnyRecord) -> None:
    """Write the record into the step's folder."""
    write_json(folder / RECORD, record.model_dump(mode="json"))


def describe_files(folder: Path, *names: str) -> tuple[Artifact, ...]:
    """Return the artifacts for files inside `folder`."""
    return tuple(
        Artifact(name=name, sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size) for name in names
    )


def record_digest(folder: Path) -> str:
    """Return the digest of a step's record, which covers the step's files, since the record holds their digests."""
    if not (folder / RECORD).is_file():
        raise ArtifactError(f"{folder / RECORD} is missing; run the step that makes it (winnow status shows which)")
    return sha256_of(folder / RECORD)
