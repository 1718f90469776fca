"""A Parquet table that holds the images themselves, as Hugging Face's data sets do.

    image: struct<bytes: binary, path: string>     or binary
    label: int64 or string                         names of integer labels are read from Hugging Face's metadata
    split, group                                   optional, as in any table of labels (winnow.data.label_table)

Bytes come from the table, row by row; data.path is not looked at. What is held is a label, a flag and a group a row.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.decoding import Content, Item
from winnow.data.label_table import column_places, ordered_classes, texts
from winnow.data.split_names import split_of
from winnow.errors import DataError
from winnow.printable import printable

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ImageTable:
    """What a table says of its images, row by row."""

    file: Path
    classes: tuple[str, ...]
    labels: array[int]
    """Positions in `classes`; -1: no label."""
    tests: bytearray
    groups: list[str]

    @property
    def has_groups(self) -> bool:
        """Whether any row names a group."""
        return any(self.groups)

    def items(self) -> Iterator[Item]:
        """The images, in the order of the table."""
        rows = zip(_contents(self.file), self.labels, self.tests, self.groups, strict=True)
        for (name, content), label, is_test, group in rows:
            yield Item(name, label, bool(is_test), content, group)


def read_image_table(file: Path) -> ImageTable | None:
    """Read labels, splits and groups of a Parquet table of images; None where it holds paths and no images.

    Raises DataError for what is no table of images with labels.
    """
    if file.suffix.lower() != ".parquet" or not file.is_file():
        return None
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None  # winnow.data.label_table says what is missing
    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            places = column_places(file, list(schema.names))
            if not _holds_bytes(schema.types[places[0]], pyarrow.types):
                return None
            wanted = [schema.names[at] for at in places[1:] if at >= 0]
            known = _class_names(schema.metadata, schema.names[places[1]])
            return _read(file, table.iter_batches(columns=wanted), [schema.names[at] for at in places], places, known)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from error


def _read(
    file: Path, batches: Iterator[Any], columns: list[str], places: tuple[int, ...], known: list[str]
) -> ImageTable:
    names: dict[str, int] = {}
    labels, tests, groups = array("q"), bytearray(), []
    for batch in batches:
        values = [
            batch.column(name).to_pylist() if at >= 0 else [None] * batch.num_rows
            for name, at in zip(columns[1:], places[1:], strict=True)
        ]
        for row in zip(*values, strict=True):
            _, label, split, group = texts(("", *row))
            if known and label.isdecimal() and int(label) < len(known):
                label = known[int(label)]
            labels.append(-1 if not label or label == "-1" else names.setdefault(label, len(names)))
            tests.append(split_of(split) == "test")
            groups.append(group)
    classes, order = ordered_classes(file, names)
    return ImageTable(file, classes, array("q", (order[number] for number in labels)), tests, groups)


def _holds_bytes(kind: Any, types: Any) -> bool:
    if types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str]:
    """Return the names that Hugging Face's metadata give integer labels; empty where they give none."""
    try:
        told = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _contents(file: Path) -> Iterator[tuple[str, Content]]:
    """(name, bytes or why there are none) of every row."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        column = table.schema_arrow.names[column_places(file, list(table.schema_arrow.names))[0]]
        row = 0
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
            for value in batch.column(column).to_pylist():
                row += 1
                held = value if isinstance(value, dict) else {"bytes": value}
                name = printable(str(held.get("path") or f"row {row}"))
                yield name, held.get("bytes") or ValueError(f"row {row} of {file.name} holds no bytes of an image")
