"""The labels of a folder's images as a table: CSV or Parquet with columns `path` and `label`, perhaps `split`, `group`.

    path,label,split,group
    2024/IMG_0001.jpg,cat,,burst 7
    2024/IMG_0002.jpg,,,burst 7        no label: the image is used without one
    2025/IMG_0100.jpg,dog,test,        the test set, where the table names one

Paths are relative to the folder (or absolute, inside it), with / or, from Windows, \\. CSV may be separated by comma,
semicolon or tab, begin with Excel's line `sep=;`, and have a space after each separator. Labels that are whole numbers
written as 0.0 and 1.0 (pandas does so beside empty cells) are 0 and 1; a label in two Unicode forms is one. Only the
columns in use are read, row by row; what is held is one entry a path.
"""

from __future__ import annotations

import csv
import posixpath
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.split_names import split_of
from winnow.errors import DataError, MissingExtra

PATH_NAMES = ("path", "file", "filename", "file_name", "image")
LABEL_NAMES = ("label", "class", "category")
SPLIT, GROUP = "split", "group"
SEPARATORS = ",;\t"
EXCEL = re.compile(r'"?sep=([,;\t])"?', re.IGNORECASE)
"""What a first line says to Excel."""
INTEGER = re.compile(r"-?\d+(\.0*)?")
SHOWN = 10


@dataclass(frozen=True)
class Labels:
    """What a table says of each path."""

    file: Path
    classes: tuple[str, ...]
    """Sorted."""
    rows: dict[str, tuple[int, bool, str]]
    """Path -> label (-1: none), whether it is a test image, its group ("": none)."""
    has_groups: bool
    doubled: tuple[str, ...]
    """Paths that stand there more than once, each time with the same label."""


def read_labels(file: Path, folder: Path) -> Labels:
    """Read the table of `folder`'s images. Raises DataError for what is no such table, or contradicts itself."""
    names: dict[str, int] = {}
    rows: dict[str, tuple[int, bool, str]] = {}
    doubled: list[str] = []
    torn: list[str] = []
    for number, (path, label, split, group) in enumerate(_rows(file), 1):
        key = _normalised(path, folder)
        if not key:
            raise DataError(f"{file}: row {number} names no path")
        row = (names.setdefault(label, len(names)) if label else -1, split_of(split) == "test", sys.intern(group))
        if key not in rows:
            rows[key] = row
        else:
            (doubled if rows[key] == row else torn).append(key)
    if torn:
        raise DataError(f"{file}: two rows differ about {_listed(torn)}; keep one row of each path")
    classes, order = ordered_classes(file, names)
    for key, (number, is_test, group) in rows.items():
        rows[key] = (order[number], is_test, group)
    return Labels(file, classes, rows, any(group for *_, group in rows.values()), tuple(doubled))


def ordered_classes(file: Path, names: Mapping[str, int]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the classes, sorted, and the position of each number that `names` gives a label; -1 stays.

    Raises DataError where there are fewer than two.
    """
    written = as_integers(names)
    classes = tuple(sorted(set(written.values())))
    if len(classes) < 2:
        raise DataError(f"{file}: labels of {len(classes)} classes, a classifier needs two")
    places = {name: position for position, name in enumerate(classes)}
    return classes, {number: places[written[name]] for name, number in names.items()} | {-1: -1}


def as_integers(names: Iterable[str]) -> dict[str, str]:
    """Return the name of each class: 1.0 becomes 1 where all of them are whole numbers."""
    names = list(names)
    if all(INTEGER.fullmatch(name) for name in names):
        return {name: name.partition(".")[0] for name in names}
    return {name: name for name in names}


def _rows(file: Path) -> Iterator[tuple[str, str, str, str]]:
    """(path, label, split, group) of every row, "" for what it does not say."""
    if not file.is_file():
        raise DataError(f"data.labels: {file} is no file")
    return _from_parquet(file) if file.suffix.lower() == ".parquet" else _from_csv(file)


def _from_csv(file: Path) -> Iterator[tuple[str, str, str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header, first = opened.readline(), 2
            if named := EXCEL.fullmatch(header.strip()):
                header, first = opened.readline(), 3
            separator = named[1] if named else max(SEPARATORS, key=header.count)
            is_spaced = f"{separator} " in header
            form: dict[str, Any] = {"delimiter": separator, "skipinitialspace": is_spaced}
            columns = column_places(file, next(csv.reader([header], **form), []))
            for line, row in enumerate(csv.reader(opened, strict=True, **form), first):
                if not row:
                    continue
                if len(row) <= max(columns):
                    raise DataError(f"{file}: line {line} has {len(row)} columns, fewer than the header")
                yield texts(row[at] if at >= 0 else "" for at in columns)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV ({error})") from error


def _from_parquet(file: Path) -> Iterator[tuple[str, str, str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "tables") from error
    try:
        with parquet.ParquetFile(file) as table:
            names = list(table.schema_arrow.names)
            columns = column_places(file, names)
            kind = table.schema_arrow.types[columns[0]]
            if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind):
                raise DataError(
                    f"{file}: its column {names[columns[0]]} holds {str(kind)[:100]} and no paths; for images in "
                    "the table it is to be struct<bytes, path> or binary"
                )
            wanted = [names[at] for at in columns if at >= 0]
            for batch in table.iter_batches(columns=wanted):
                values = {name: batch.column(name).to_pylist() for name in wanted}
                for index in range(batch.num_rows):
                    yield texts(values[names[at]][index] if at >= 0 else "" for at in columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from error


def texts(values: Iterable[Any]) -> tuple[str, str, str, str]:
    """Return path, label, split and group of a row as text; "" for what is empty, or no number (NaN)."""
    path, label, split, group = ("" if value is None or value != value else str(value) for value in values)
    return path, key_of(label.strip()), split.strip(), key_of(group.strip())


def column_places(file: Path, header: list[str]) -> tuple[int, int, int, int]:
    """Where path, label, split and group stand; -1 for a split or group that is not there."""
    names = [str(name).strip().lower() for name in header]
    found = []
    for kind, known in (("path", PATH_NAMES), ("label", LABEL_NAMES)):
        at = [names.index(name) for name in known if name in names]
        if len(at) != 1:
            told = (
                f"has {' and '.join(names[one] for one in at)}, keep one" if at else f"has {', '.join(names) or 'none'}"
            )
            raise DataError(f"{file}: the header needs one column {kind} (or {', '.join(known[1:])}); it {told}")
        found.append(at[0])
    split, group = (names.index(name) if name in names else -1 for name in (SPLIT, GROUP))
    return found[0], found[1], split, group


def _normalised(path: str, folder: Path) -> str:
    """Relative to the folder, with / and without detours."""
    if "/" not in path:
        path = path.replace("\\", "/")
    if path.startswith("/"):
        path = posixpath.relpath(path, folder.absolute().as_posix())
    return key_of(posixpath.normpath(path)) if path else ""


def key_of(path: str) -> str:
    """What files are told by: a Mac writes accents in another way than most tables do."""
    return unicodedata.normalize("NFC", path)


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
