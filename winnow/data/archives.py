"""Images in a zip or tar, read in place: nothing is unpacked to disk, so no name can lead out of its folder.

A member that is a link, has a name that would lead out, is encrypted or too large is set aside with its reason. An
archive that is damaged, cut off, or expands like a decompression bomb is an error.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self, cast

from winnow.data.decoding import MAX_FILE_BYTES
from winnow.errors import DataError

BOMB_RATIO, BOMB_BYTES = 200, 1_000_000_000
"""Images hardly compress: what unpacks to more than both is not read."""
ENCRYPTED = 0x1
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, lzma.LZMAError, zlib.error, NotImplementedError)
HEADER_BYTES = 1_000_000
"""A header that holds long names is shorter."""
OF_THE_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Types of members that say something of the next one."""


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


class _Info(tarfile.TarInfo):
    """A header that is damaged is an error: tarfile takes it for the end of the archive. `ends` counts empty blocks."""

    ends: int

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next member."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            cls.ends += 1
            if cls.ends * tarfile.BLOCKSIZE > BOMB_BYTES:
                raise tarfile.ReadError("it ends in nothing but zeros") from None
            raise
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A header; what only tells of the next one is short."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in OF_THE_NEXT and info.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def _unpacked(path: Path) -> IO[bytes]:
    """The bytes of a tar. These readers see to check sums and go through parts that were joined; tarfile's do not."""
    with path.open("rb") as file:
        begin = file.read(6)
    for head, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if begin.startswith(head):
            return cast(IO[bytes], opened(path))
    return path.open("rb")


def _of_tar(path: Path) -> Iterator[tuple[Member, int]]:
    headers: type[_Info] = type("_Headers", (_Info,), {"ends": 0})
    # Past empty blocks, to the end of the file: what was appended is read, and the check sum of the whole is seen.
    with _unpacked(path) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=headers, ignore_zeros=True) as archive:
        for info in archive:
            if info.isdir():
                continue
            problem = _problem(info.name, info.size, "" if info.isreg() else "a link or device, no file")

            def read(info: tarfile.TarInfo = info) -> bytes:
                opened = archive.extractfile(info)
                return opened.read() if opened else b""

            yield Member(_parts(info.name), problem, read), info.size
    # tarfile takes a file that was cut off at a header for a whole one; whole ones end in two empty blocks.
    if headers.ends < 2:
        raise DataError(f"{path} is cut off; fetch it again")


def _of_zip(path: Path) -> Iterator[tuple[Member, int]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename or info.is_dir():
                continue
            kind = info.external_attr >> 28
            more = "encrypted" if info.flag_bits & ENCRYPTED else "a link, no file" if kind == 0xA else ""
            problem = _problem(info.filename, info.file_size, more)

            def read(info: zipfile.ZipInfo = info) -> bytes:
                try:
                    with archive.open(info) as opened:
                        return opened.read(MAX_FILE_BYTES)
                except DAMAGED as error:
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
