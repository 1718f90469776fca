"""Read a Parquet table that holds the images themselves, as Hugging Face's data sets do.

    image: struct<bytes: binary, path: string>     or binary
    label: int64 or string                         names of integer labels are read from Hugging Face's metadata
    split, group                                   optional, as in any table of labels (winnow.data.label_table)

Bytes come from the table, row by row; data.path is not used. Memory holds a label, a flag and a group for each row.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.data.image_items import Content, Item
from winnow.data.label_table import NO_LABEL, cell_texts, column_positions, ordered_classes
from winnow.data.split_names import is_test_row
from winnow.errors import DataError
from winnow.printable import printable

BATCH_ROWS = 64


@dataclass(frozen=True)
class ImageTable:
    """Labels, splits and groups of a table of images, row by row."""

    file: Path
    classes: tuple[str, ...]
    labels: array[int]
    """Positions in `classes`; -1 for no label."""
    tests: bytearray
    """1 for rows of the test set, else 0."""
    groups: list[str]

    @property
    def has_groups(self) -> bool:
        """Return whether any row names a group."""
        return any(self.groups)

    def items(self) -> Iterator[Item]:
        """Yield the images in the order of the table."""
        rows = zip(_contents(self.file), self.labels, self.tests, self.groups, strict=True)
        for (name, content), label, is_test, group in rows:
            yield Item(name, label, bool(is_test), content, group)


def read_image_table(file: Path) -> ImageTable | None:
    """Return the labels, splits and groups of a Parquet table of images; None where it holds paths and no images.

    Raises DataError where it is not a table of images with labels.
    """
    if file.suffix.lower() != ".parquet" or not file.is_file():
        return None
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None  # winnow.data.label_table raises MissingExtra
    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            positions = column_positions(file, list(schema.names))
            if not _holds_bytes(schema.types[positions[0]], pyarrow.types):
                return None
            columns = [schema.names[position] if position >= 0 else None for position in positions[1:]]
            batches = table.iter_batches(columns=[name for name in columns if name is not None])
            class_names = _class_names(schema.metadata, schema.names[positions[1]])
            return _read_rows(file, batches, columns, class_names)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from error


def _read_rows(file: Path, batches: Iterator[Any], columns: list[str | None], class_names: list[str]) -> ImageTable:
    """Read label, split and group of every row. `columns` are their names, None for one that is missing."""
    numbers: dict[str, int] = {}
    labels, tests, groups = array("q"), bytearray(), []
    for batch in batches:
        values = [batch.column(name).to_pylist() if name is not None else [None] * batch.num_rows for name in columns]
        for row in zip(*values, strict=True):
            _, label, split, group = cell_texts(("", *row), f"{file}: row {len(labels) + 1}")
            if class_names and label.isdecimal() and int(label) < len(class_names):
                label = class_names[int(label)]
            is_unlabelled = not label or (class_names and label == NO_LABEL)
            labels.append(-1 if is_unlabelled else numbers.setdefault(label, len(numbers)))
            tests.append(is_test_row(split, file, len(labels)))
            groups.append(group)
    classes, order = ordered_classes(file, numbers)
    return ImageTable(file, classes, array("q", (order[number] for number in labels)), tests, groups)


def _holds_bytes(column_type: Any, types: Any) -> bool:
    if types.is_struct(column_type):
        return any(column_type.field(index).name == "bytes" for index in range(column_type.num_fields))
    return bool(types.is_binary(column_type) or types.is_large_binary(column_type))


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str]:
    """Return the class names in Hugging Face's metadata, or an empty list."""
    try:
        document = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = document["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _contents(file: Path) -> Iterator[tuple[str, Content]]:
    """Yield (name, bytes or the reason why there are none) of every row."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        column = table.schema_arrow.names[column_positions(file, list(table.schema_arrow.names))[0]]
        row = 0
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
            for value in batch.column(column).to_pylist():
                row += 1
                image = value if isinstance(value, dict) else {"bytes": value}
                name = printable(str(image.get("path") or f"row {row}"))
                yield name, image.get("bytes") or ValueError(f"row {row} of {file.name} holds no image bytes")
