"""What a step leaves beside its files: one `record.json`, read by the next step, by tracking and by people.

A record holds no wall time and no path outside its folder: the same inputs give the same bytes, so DVC can stop where
nothing changed. The one exception is the benchmark, whose figures are times and carry the machine they were taken on.

    with publish(out) as folder:            # a temporary name beside `out`, renamed when all went well
        ...                                 # write files into `folder`
        write_record(folder, record)
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from winnow.errors import ArtifactError
from winnow.hardware import SPEED_FLAGS, cores, cpu_flags, cpu_name, memory_gb

RECORD = "record.json"
FORMAT = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Artifact(_Frozen):
    """A file of a step, by its name inside the step's folder."""

    name: str
    sha256: str
    bytes: int


class Machine(_Frozen):
    """Where a figure was taken. Figures of two machines are never compared."""

    cpu: str
    flags: tuple[str, ...]
    """Those that decide speed here: avx2, avx512f, avx512_vnni, avx512_bf16, amx_tile, amx_int8, amx_bf16."""
    threads: int
    memory_gb: float
    gpu: str
    system: str
    versions: dict[str, str]
    """Libraries that do the work: torch, onnxruntime, openvino, ..."""

    @property
    def identity(self) -> str:
        """What makes the times of two machines different ones; versions are recorded and do not invalidate."""
        return f"{self.cpu}, {self.threads} threads, {' '.join(self.flags) or 'no flags'}"


class Gate(_Frozen):
    """One condition with both numbers in it."""

    name: str
    passed: bool
    reason: str
    needs: str = ""
    """Of one that failed: the key of promotion.gates with the value at which it would pass, where it was measured."""
    shown: bool = True
    """False: it did not pass, but only because the images are too few, or the timings too noisy, to tell."""
    checked: bool = True
    """False: not measured where the file will serve, as `reason` says. Then it blocks nothing, and `passed` is true."""


class Verdict(_Frozen):
    """What `decide` says of one candidate."""

    candidate: str
    passed: bool
    gates: tuple[Gate, ...]
    on_front: bool
    """No other candidate is better in accuracy, size and latency at once."""


class StepRecord(_Frozen):
    """What a step did: its settings, what it read, what it measured, what it left."""

    step: str
    name: str
    """The step itself, or the candidate's name."""
    parameters: dict[str, Any]
    """The section of params.yaml that it read, resolved."""
    inputs: dict[str, str]
    """Digests of the records (or files) it read."""
    metrics: dict[str, float]
    """Flat, the same names for all candidates: quality/top1, size/mb, ..."""
    details: dict[str, Any] = {}
    """Everything that is no single number: per-class tables, curves, reasons."""
    warnings: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    machine: Machine | None = None
    format: int = FORMAT


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path, *names: str) -> tuple[Artifact, ...]:
    """Artifacts for files inside `folder`."""
    return tuple(
        Artifact(name=name, sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size) for name in names
    )


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, written to a temporary name and renamed."""
    with renamed(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; the file becomes `path` if the block ends well, and is removed if not.

    It is on the disk before it takes the name, so that a power cut leaves the former file or this one. What a killed
    process left of it is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for left, _ in _left_by_ended_processes(path):
        if left != temporary:  # another thread's: it becomes `path`, or this one does
            left.unlink(missing_ok=True)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Have what was written to a file or a folder on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def json_text(value: Any) -> str:
    """Return what `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours; ArtifactError says which one is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the step that makes it (winnow status shows which)") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete its folder and run winnow again") from error


def write_record(folder: Path, record: StepRecord) -> None:
    """Leave the record in the step's folder."""
    write_json(folder / RECORD, record.model_dump(mode="json"))


def read_record(folder: Path) -> StepRecord:
    """The record in a step's folder. Raises ArtifactError when it is missing, damaged or of another version."""
    path = folder / RECORD
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise ArtifactError(f"{path} was written by another version of winnow; delete its folder and run winnow again")
    try:
        return StepRecord.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path} is damaged (at {where or 'the top'}: {first['msg']}); delete its folder and run winnow again"
        ) from error


def quality_as_served(selection: StepRecord, name: str) -> dict[str, float]:
    """Return what the record of the step select holds of a candidate in the runtime and precision that would serve it.

    quality/top1 and its interval, quality/macro_f1, quality/agreement and delta/top1; a candidate's own record holds
    these of its file in ONNX Runtime. Raises ArtifactError where another version of winnow has selected.
    """
    found: dict[str, float] | None = selection.details.get("quality", {}).get(name)
    if found is None:
        raise ArtifactError(f"the selection holds no quality of {name}: another version of winnow made it; winnow run")
    return found


def record_digest(folder: Path) -> str:
    """Digest of a step's record; it covers the step's files, whose digests the record holds."""
    if not (folder / RECORD).is_file():
        raise ArtifactError(f"{folder / RECORD} is missing; run the step that makes it (winnow status shows which)")
    return sha256_of(folder / RECORD)


@contextmanager
def publish(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` if the block ends well and vanishes if not.

    What was there before is set aside until the new one is in place, and comes back where that fails; where the process
    is killed in between, the next `publish` brings it back.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old.tmp"))
    _sweep(out)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _flush(path)
        _flush(temporary)
        if out.exists():
            out.replace(aside)
        try:
            temporary.replace(out)
        except BaseException:
            if aside.exists():
                aside.replace(out)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what a killed process left beside `out`; the version that it had set aside comes back if `out` is gone."""
    for left, kind in _left_by_ended_processes(out):
        if kind == ["old", "tmp"] and not out.exists():
            left.replace(out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _left_by_ended_processes(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield temporary names beside `path`, and what follows the number of the process, of this one and ended ones."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        maker, *kind = left.name.removeprefix(f".{path.name}.").split(".")
        if maker.isdigit() and (int(maker) == os.getpid() or not _is_running(int(maker))):
            yield left, kind


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


WORKERS = (
    *("torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("nncf", "torch-pruning", "onnx", "numpy", "pillow"),
)


def this_machine(gpu: str = "") -> Machine:
    """This machine; `gpu` is the device's name where torch sees one (this file imports no torch)."""
    versions = {}
    for package in WORKERS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=cpu_name(),
        flags=tuple(flag for flag in SPEED_FLAGS if flag in cpu_flags()),
        threads=cores(),
        memory_gb=memory_gb(),
        gpu=gpu,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions=versions,
    )
