"""The record that each step writes beside its files: one `record.json`, read by the next step, by tracking and by
people.

A record holds no wall time and no path outside its folder: the same inputs give the same bytes, so DVC can stop where
nothing changed. The one exception is the benchmark, whose figures are times; its record names the machine.

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


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Artifact(_FrozenModel):
    """A file of a step, by its name inside the step's folder."""

    name: str
    sha256: str
    bytes: int


class Machine(_FrozenModel):
    """The machine on which a figure was measured. Figures of two machines are never compared."""

    cpu: str
    flags: tuple[str, ...]
    """The processor flags that decide speed: avx2, avx512f, avx512_vnni, avx512_bf16, amx_tile, amx_int8, amx_bf16."""
    threads: int
    memory_gb: float
    gpu: str
    system: str
    versions: dict[str, str]
    """Versions of the libraries that do the work: torch, onnxruntime, openvino, ..."""

    @property
    def identity(self) -> str:
        """Return what must be equal for times to be comparable; versions are recorded, but do not invalidate times."""
        return f"{self.cpu}, {self.threads} threads, {' '.join(self.flags) or 'no flags'}"


class Gate(_FrozenModel):
    """One condition for promotion; the reason states the value and the threshold."""

    name: str
    passed: bool
    reason: str
    needs: str = ""
    """The key of promotion.gates with the value at which a failed gate would pass, where that is known."""
    shown: bool = True
    """False where the gate did not pass only because the images are too few, or the timings too noisy, to decide it."""
    checked: bool = True
    """False where the value was not measured on the serving machine, as `reason` says. `passed` is then true."""


class Verdict(_FrozenModel):
    """The decision on one candidate."""

    candidate: str
    passed: bool
    gates: tuple[Gate, ...]
    on_front: bool
    """True where no other candidate is better in accuracy, size and latency at once."""


class StepRecord(_FrozenModel):
    """The settings, inputs, metrics and files of one step."""

    step: str
    name: str
    """The step's name, or the candidate's."""
    parameters: dict[str, Any]
    """The step's section of params.yaml, resolved."""
    inputs: dict[str, str]
    """Digests of the records (or files) that the step read."""
    metrics: dict[str, float]
    """Flat, with the same names for all candidates: quality/top1, size/mb, ..."""
    details: dict[str, Any] = {}
    """Everything that is not a single number: per-class tables, curves, reasons."""
    warnings: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    machine: Machine | None = None
    format: int = FORMAT


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path, *names: str) -> tuple[Artifact, ...]:
    """Return the artifacts for files inside `folder`."""
    return tuple(
        Artifact(name=name, sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size) for name in names
    )


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON under a temporary name, then rename it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file becomes `path` if the block ends well, and is removed otherwise.

    It is flushed to disk before the rename, so that a power cut leaves the former file or the new one. Leftovers of
    killed processes are removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for leftover, _ in _leftovers(path):
        if leftover != temporary:  # may be another thread's, which is still writing
            leftover.unlink(missing_ok=True)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of ours. Raises ArtifactError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the step that makes it (winnow status shows which)") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete its folder and run winnow again") from error


def write_record(folder: Path, record: StepRecord) -> None:
    """Write the record into the step's folder."""
    write_json(folder / RECORD, record.model_dump(mode="json"))


def read_record(folder: Path) -> StepRecord:
    """Return the record in a step's folder. Raises ArtifactError when it is missing, damaged or of another version."""
    path = folder / RECORD
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise ArtifactError(f"{path} was written by another version of winnow; delete its folder and run winnow again")
    try:
        return StepRecord.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path} is damaged (at {location or 'the top'}: {first['msg']}); delete its folder and run winnow again"
        ) from error


def quality_as_served(selection: StepRecord, name: str) -> dict[str, float]:
    """Return a candidate's metrics, from the record of select, in the runtime and precision that would serve it.

    These are quality/top1 and its interval, quality/macro_f1, quality/agreement and delta/top1. A candidate's own
    record holds them for its file in ONNX Runtime. Raises ArtifactError for a selection by another version of winnow.
    """
    metrics: dict[str, float] | None = selection.details.get("quality", {}).get(name)
    if metrics is None:
        raise ArtifactError(f"the selection has no quality of {name}: another version of winnow wrote it; winnow run")
    return metrics


def record_digest(folder: Path) -> str:
    """Return the digest of a step's record, which covers the step's files, since the record holds their digests."""
    if not (folder / RECORD).is_file():
        raise ArtifactError(f"{folder / RECORD} is missing; run the step that makes it (winnow status shows which)")
    return sha256_of(folder / RECORD)


@contextmanager
def publish(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; it becomes `out` if the block ends well, and is removed otherwise.

    The previous `out` is set aside until the new one is in place, and restored where that fails. Where the process is
    killed in between, the next `publish` restores it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, previous = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old.tmp"))
    _remove_leftovers(out)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _flush(path)
        _flush(temporary)
        if out.exists():
            out.replace(previous)
        try:
            temporary.replace(out)
        except BaseException:
            if previous.exists():
                previous.replace(out)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove leftovers of killed processes beside `out`, or restore the version that they had set aside if `out` is
    gone.
    """
    for leftover, kind in _leftovers(out):
        if kind == ["old", "tmp"] and not out.exists():
            leftover.replace(out)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield (path, name parts after the process id) of temporary names beside `path`, of this process and of ended
    ones.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process, *kind = leftover.name.removeprefix(f".{path.name}.").split(".")
        if process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process))):
            yield leftover, kind


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


VERSIONED_PACKAGES = (
    *("torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("nncf", "torch-pruning", "onnx", "numpy", "pillow"),
)


def this_machine(gpu: str = "") -> Machine:
    """Return the description of this machine. `gpu`: the device's name where torch finds one (this file imports no
    torch).
    """
    versions = {}
    for package in VERSIONED_PACKAGES:
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
