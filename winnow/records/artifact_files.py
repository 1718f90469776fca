"""Files of a step: written under a temporary name and renamed, so that they are complete or absent.

with publish(out) as folder:            # a temporary name beside `out`, renamed when all went well
    ...                                 # write files into `folder`
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from winnow.errors import ArtifactError


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON under a temporary name, then rename it."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 under a temporary name, then rename it."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
