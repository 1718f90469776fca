"""Read the labels of a folder's images from CSV or Parquet: columns `path`, `label`, optionally `split` and `group`.

    path,label,split,group
    2024/IMG_0001.jpg,cat,,burst 7
    2024/IMG_0002.jpg,,,burst 7        no label: the image is used without one
    2025/IMG_0100.jpg,dog,test,        an image of the test set, if the table defines one

Paths are relative to the folder (or absolute, inside it), with / or, from Windows, \\. CSV may be separated by comma,
semicolon or tab, begin with Excel's line `sep=;`, and have a space after each separator. Integer labels written as 0.0
and 1.0 (pandas does so in columns with empty cells) are 0 and 1; a label in two Unicode forms is one. Among labels that
count classes from 0, -1 stands for no label, as in scikit-learn and Hugging Face's data sets. Only the columns in use
are read, row by row; memory holds one entry for each path.
"""

from __future__ import annotations

import csv
import itertools
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.folder_layout import normalize_unicode
from winnow.data.split_names import is_test_row
from winnow.errors import DataError, MissingExtra

PATH_NAMES = ("path", "file", "filename", "file_name", "image")
LABEL_NAMES = ("label", "class", "category")
SPLIT, GROUP = "split", "group"
SEPARATORS = ",;\t"
EXCEL_SEPARATOR = re.compile(r'"?sep=([,;\t])"?', re.IGNORECASE)
"""A first line that tells Excel the separator."""
INTEGER = re.compile(r"-?\d+(\.0*)?")
MAX_SHOWN = 10
NO_LABEL = "-1"


@dataclass(frozen=True)
class LabelTable:
    """The labels of a table by path."""

    file: Path
    classes: tuple[str, ...]
    """The class names, sorted."""
    rows: dict[str, tuple[int, bool, str]]
    """(label or -1, is it a test image, group or "") by path."""
    has_groups: bool
    repeated: tuple[str, ...]
    """The paths that have several identical rows."""


def read_labels(file: Path, folder: Path) -> LabelTable:
    """Read the table of `folder`'s images. Raises DataError where it is not such a table or contradicts itself."""
    numbers: dict[str, int] = {}
    rows: dict[str, tuple[int, bool, str]] = {}
    repeated: list[str] = []
    contradictory: list[str] = []
    for number, (raw_path, label, split, group) in enumerate(_read_rows(file), 1):
        path = _relative_path(raw_path, folder)
        if not path:
            raise DataError(f"{file}: row {number} has no path")
        row = (
            numbers.setdefault(label, len(numbers)) if label else -1,
            is_test_row(split, file, number),
            sys.intern(group),
        )
        if path not in rows:
            rows[path] = row
        else:
            (repeated if rows[path] == row else contradictory).append(path)
    if contradictory:
        raise DataError(f"{file}: rows differ for {_join_names(contradictory)}; keep one row for each path")
    classes, order = ordered_classes(file, numbers)
    for path, (label_number, is_test, group) in rows.items():
        rows[path] = (order[label_number], is_test, group)
    return LabelTable(file, classes, rows, any(group for *_, group in rows.values()), tuple(repeated))


def ordered_classes(file: Path, numbers: Mapping[str, int]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the classes, sorted, and the position of each number that `numbers` gives a label; -1 maps to -1.

    The label -1 has position -1 where it stands for no label. Raises DataError where there are fewer than two classes.
    """
    class_names = normalize_integer_labels(numbers)
    names = set(class_names.values())
    classes = tuple(sorted(names - {NO_LABEL} if _has_no_label(names) else names))
    if len(classes) < 2:
        raise DataError(f"{file}: labels of {len(classes)} classes, a classifier needs two")
    positions = {NO_LABEL: -1} | {name: position for position, name in enumerate(classes)}
    return classes, {number: positions[class_names[label]] for label, number in numbers.items()} | {-1: -1}


def _has_no_label(names: set[str]) -> bool:
    """Return whether NO_LABEL is no class: the others count classes from 0. Of -1 and 1 alone, both are classes."""
    others = names - {NO_LABEL}
    return len(others) >= 2 and all(name.isdecimal() for name in others)


def normalize_integer_labels(names: Iterable[str]) -> dict[str, str]:
    """Return the class name of each label: 1.0 becomes 1 where all labels are whole numbers."""
    names = list(names)
    if all(INTEGER.fullmatch(name) for name in names):
        return {name: name.partition(".")[0] for name in names}
    return {name: name for name in names}


def _read_rows(file: Path) -> Iterator[tuple[str, str, str, str]]:
    """Return (path, label, split, group) of every row, "" for an empty cell."""
    if not file.is_file():
        raise DataError(f"data.labels: {file} is not a file")
    return _read_parquet(file) if file.suffix.lower() == ".parquet" else _read_csv(file)


def _read_csv(file: Path) -> Iterator[tuple[str, str, str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header, first_line = stream.readline(), 2
            if excel := EXCEL_SEPARATOR.fullmatch(header.strip()):
                header, first_line = stream.readline(), 3
            separator = excel[1] if excel else max(SEPARATORS, key=header.count)
            is_spaced = f"{separator} " in header
            dialect: dict[str, Any] = {"delimiter": separator, "skipinitialspace": is_spaced}
            columns = column_positions(file, next(csv.reader([header], **dialect), []))
            for line, row in enumerate(csv.reader(stream, strict=True, **dialect), first_line):
                if not row:
                    continue
                if len(row) <= max(columns):
                    raise DataError(f"{file}: line {line} has {len(row)} columns, fewer than the header")
                yield cell_texts((row[column] if column >= 0 else "" for column in columns), f"{file}: line {line}")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV ({error})") from error


def _read_parquet(file: Path) -> Iterator[tuple[str, str, str, str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "tables") from error
    try:
        with parquet.ParquetFile(file) as table:
            names = list(table.schema_arrow.names)
            columns = column_positions(file, names)
            path_type = table.schema_arrow.types[columns[0]]
            if pyarrow.types.is_nested(path_type) or pyarrow.types.is_binary(path_type):
                raise DataError(
                    f"{file}: its column {names[columns[0]]} holds {str(path_type)[:100]} and no paths; images in a "
                    "table must be struct<bytes, path> or binary"
                )
            used = [names[column] for column in columns if column >= 0]
            numbers = itertools.count(1)
            for batch in table.iter_batches(columns=used):
                values = {name: batch.column(name).to_pylist() for name in used}
                for index in range(batch.num_rows):
                    cells = (values[names[column]][index] if column >= 0 else "" for column in columns)
                    yield cell_texts(cells, f"{file}: row {next(numbers)}")
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from error


def cell_texts(values: Iterable[Any], where: str) -> tuple[str, str, str, str]:
    """Return path, label, split and group of a row as text; "" for an empty or NaN cell. `where`: the table's row.

    Raises DataError for a cell that is no text or number.
    """
    path, label, split, group = (_cell_text(value, where) for value in values)
    return path, normalize_unicode(label.strip()), split.strip(), normalize_unicode(group.strip())


def _cell_text(value: Any, where: str) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, list | dict):
        raise DataError(f"{where} holds {str(value)[:60]}, where one value is needed: one label per image")
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{where} holds bytes that are no UTF-8 text: {value[:30]!r}; store text") from None
    return str(value)


def column_positions(file: Path, header: list[str]) -> tuple[int, int, int, int]:
    """Return the positions of path, label, split and group; -1 for a missing split or group.

    Raises DataError where path or label is missing or ambiguous.
    """
    names = [str(name).strip().lower() for name in header]
    path, label = (
        _required_column(file, names, kind, accepted)
        for kind, accepted in (("path", PATH_NAMES), ("label", LABEL_NAMES))
    )
    split, group = (names.index(name) if name in names else -1 for name in (SPLIT, GROUP))
    return path, label, split, group


def _required_column(file: Path, names: list[str], kind: str, accepted: tuple[str, ...]) -> int:
    """Return the position of the one column with an accepted name. Raises DataError unless there is exactly one."""
    matches = [names.index(name) for name in accepted if name in names]
    if len(matches) == 1:
        return matches[0]
    if matches:
        actual = f"has {' and '.join(names[match] for match in matches)}, keep one"
    else:
        actual = f"has {', '.join(names) or 'none'}"
    raise DataError(f"{file}: the header needs one column {kind} (or {', '.join(accepted[1:])}); it {actual}")


def _relative_path(path: str, folder: Path) -> str:
    """Return a path relative to the folder, normalized, with /."""
    if "/" not in path:
        path = path.replace("\\", "/")
    if path.startswith("/"):
        path = posixpath.relpath(path, folder.absolute().as_posix())
    return normalize_unicode(posixpath.normpath(path)) if path else ""


def _join_names(names: list[str]) -> str:
    suffix = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + suffix
