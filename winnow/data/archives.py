"""Images in a zip or tar, read in place: nothing is unpacked to disk, so no name can lead out of its folder.

A member that is a link, has a name that would lead out, is encrypted or too large is set aside with its reason. An
archive that is damaged, cut off, or expands like a decompression bomb is an error.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from winnow.data.decoding import MAX_FILE_BYTES
from winnow.errors import DataError

BOMB_RATIO, BOMB_BYTES = 200, 1_000_000_000
"""Images hardly compress: what unpacks to more than both is not read."""
ENCRYPTED = 0x1
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, lzma.LZMAError, zlib.error)
OF_A_MAC = "__MACOSX"
"""Folder that macOS puts into zips, with a companion of every file."""


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    parts: tuple[str, ...]
    """Its name."""
    problem: str
    """Why it cannot be used; "" where it can."""
    read: Callable[[], bytes]
    """Its content; to be called before the next member is asked for. Raises ValueError where that is damaged."""


def members(path: Path) -> Iterator[Member]:
    """The files of an archive, in its own order. Raises DataError where it cannot be read to its end."""
    reader = _of_zip if path.suffix.lower() == ".zip" else _of_tar
    total, limit = 0, max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
    try:
        for member, size in reader(path):
            total += size
            if total > limit:
                raise DataError(
                    f"{path} unpacks to more than {limit:,} bytes, {BOMB_RATIO} times its size: no images do"
                )
            yield member
    except DAMAGED as error:
        raise DataError(f"{path} is damaged or no archive ({error}); fetch it again") from error


def _of_tar(path: Path) -> Iterator[tuple[Member, int]]:
    with tarfile.open(path, "r|*") as archive:
        for info in archive:
            if info.isdir():
                continue
            problem = _problem(info.name, info.size, "" if info.isreg() else "a link or device, no file")

            def read(info: tarfile.TarInfo = info) -> bytes:
                opened = archive.extractfile(info)
                return opened.read() if opened else b""

            yield Member(_parts(info.name), problem, read), info.size
        # tarfile takes a file that was cut off at a header for a whole one; whole ones end in two empty blocks.
        if not archive.fileobj or len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise DataError(f"{path} is cut off; fetch it again")


def _of_zip(path: Path) -> Iterator[tuple[Member, int]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            kind = info.external_attr >> 28
            more = "encrypted" if info.flag_bits & ENCRYPTED else "a link, no file" if kind == 0xA else ""
            problem = _problem(info.filename, info.file_size, more)

            def read(info: zipfile.ZipInfo = info) -> bytes:
                try:
                    with archive.open(info) as opened:
                        return opened.read(MAX_FILE_BYTES)
                except (zipfile.BadZipFile, zlib.error, EOFError, lzma.LZMAError, NotImplementedError) as error:
                    raise ValueError(f"damaged in its archive ({error})") from error

            yield Member(_parts(info.filename), problem, read), info.file_size


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != "/")


def _problem(name: str, size: int, problem: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        return "its name leads out of the archive"
    if size > MAX_FILE_BYTES:
        return f"{size:,} bytes are more than {MAX_FILE_BYTES:,}"
    return problem
