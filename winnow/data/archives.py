"""Read the images in a zip or tar in place. Nothing is unpacked to disk, so no member can write outside its folder.

A member that is a link, points outside the archive, is encrypted or is too large gets a reason instead of content. An
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

from winnow.data.image_items import MAX_FILE_BYTES
from winnow.errors import DataError

BOMB_RATIO, BOMB_BYTES = 200, 1_000_000_000
"""Limits against decompression bombs: an archive may not unpack to more than both. Images hardly compress."""
ENCRYPTED_FLAG = 0x1
READ_ERRORS = (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, lzma.LZMAError, zlib.error, NotImplementedError)
OUTSIDE = "its path points outside the archive"
HEADER_BYTES = 1_000_000
"""The largest accepted header; one that holds long names is far shorter."""
METADATA_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Tar header types that describe the next member."""


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    parts: tuple[str, ...]
    """The folders and the file name of its path."""
    problem: str
    """The reason why it cannot be used, or ""."""
    read: Callable[[], bytes]
    """Return the content. Call it before asking for the next member. Raises ValueError where the content is damaged."""


def iter_members(path: Path) -> Iterator[Member]:
    """Yield the files of an archive in its own order. Raises DataError where it cannot be read to its end."""
    reader = _read_zip if path.suffix.lower() == ".zip" else _read_tar
    total, limit = 0, max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
    try:
        for member, size in reader(path):
            total += size
            if total > limit:
                raise DataError(
                    f"{path} unpacks to more than {limit:,} bytes, {BOMB_RATIO} times its size, as no images do"
                )
            yield member
    except READ_ERRORS as error:
        raise DataError(f"{path} is damaged or not an archive ({error}); download it again") from error


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that is an error where it is damaged; tarfile takes such a header for the end of the archive."""

    empty_blocks: int

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Return the next member and count empty blocks."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            cls.empty_blocks += 1
            if cls.empty_blocks * tarfile.BLOCKSIZE > BOMB_BYTES:
                raise tarfile.ReadError("it ends in nothing but zeros") from None
            raise
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return a header. Raises ReadError where one that only describes the next member is too long."""
        info = super().frombuf(buf, encoding, errors)
        if info.type in METADATA_TYPES and info.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def _open_decompressed(path: Path) -> IO[bytes]:
    """Open a tar, decompressed. Unlike tarfile's own readers these verify check sums and read concatenated parts."""
    with path.open("rb") as file:
        signature = file.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if signature.startswith(magic):
            return cast(IO[bytes], opener(path))
    return path.open("rb")


def _read_tar(path: Path) -> Iterator[tuple[Member, int]]:
    """Yield each file of a tar with its size in bytes."""
    header_type: type[_StrictTarInfo] = type("_CountingTarInfo", (_StrictTarInfo,), {"empty_blocks": 0})
    # Read past empty blocks to the end of the file, so that appended members are read and the check sum is verified.
    with (
        _open_decompressed(path) as file,
        tarfile.open(fileobj=file, mode="r|", tarinfo=header_type, ignore_zeros=True) as archive,
    ):
        for info in archive:
            if info.isdir():
                continue
            problem = _find_problem(info.name, info.size, "" if info.isreg() else "a link or device, not a file")

            def read(info: tarfile.TarInfo = info) -> bytes:
                content = archive.extractfile(info)
                return content.read() if content else b""

            yield Member(_path_parts(info.name), problem, read), info.size
    # tarfile accepts a file that is cut off at a header; a complete one ends in two empty blocks.
    if header_type.empty_blocks < 2:
        raise DataError(f"{path} is cut off; download it again")


def _read_zip(path: Path) -> Iterator[tuple[Member, int]]:
    """Yield each file of a zip with its size in bytes."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename or info.is_dir():
                continue
            file_type = info.external_attr >> 28
            fault = "encrypted" if info.flag_bits & ENCRYPTED_FLAG else "a link, not a file" if file_type == 0xA else ""
            problem = _find_problem(info.filename, info.file_size, fault)

            def read(info: zipfile.ZipInfo = info) -> bytes:
                try:
                    with archive.open(info) as content:
                        return content.read(MAX_FILE_BYTES)
                except READ_ERRORS as error:
                    raise ValueError(f"damaged in its archive ({error})") from error

            yield Member(_path_parts(info.filename), problem, read), info.file_size


def _path_parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in PurePosixPath(name).parts if part != "/")


def _find_problem(name: str, size: int, problem: str) -> str:
    """Return why a member cannot be used: its path, its size, or else `problem`; "" where it can."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return OUTSIDE
    if size > MAX_FILE_BYTES:
        return f"{size:,} bytes are more than {MAX_FILE_BYTES:,}"
    return problem
