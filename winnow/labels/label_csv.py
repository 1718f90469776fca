"""Write CSV files about images whose paths `data.labels` reads back, and never over what a user has typed.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula. A path cannot get an apostrophe in front, as
other cells do: it would no longer be that of the image. So it begins with ./, which `data.labels` accepts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from winnow.data.label_table import EXCEL_SEPARATOR, SEPARATORS
from winnow.errors import DataError
from winnow.printable import FORMULA_STARTS, spreadsheet_cell
from winnow.records import atomic_path

PATH, LABEL = "path", "label"


def path_cell(path: str) -> str:
    """Return a path as a cell: no spreadsheet takes it for a formula, and `data.labels` reads it as this path."""
    is_misread = path.startswith(FORMULA_STARTS) or ("\\" in path and "/" not in path)
    return f"./{path}" if is_misread else path


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the rows, whose first cell is a path, as CSV with the line ends of RFC 4180."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows((path_cell(path), *map(spreadsheet_cell, cells)) for path, *cells in rows)
    return stream.getvalue()


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write `csv_text` to the file of an option `--out`. Raises DataError where it cannot be written."""
    try:
        with atomic_path(file) as temporary:
            temporary.write_text(csv_text(header, rows), encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"--out {file}: cannot be written ({error.strerror or error})") from error


def check_replaceable(file: Path, header: Sequence[str], *known: Mapping[str, str]) -> None:
    """Raise DataError unless `file` can be overwritten: it does not exist, or holds no label that a user has typed.

    `known`: path -> a label that may be lost, because winnow wrote it or the user's own labels hold it; "" for a path
    that is missing.
    """
    if file.suffix.lower() != ".csv":
        raise DataError(f"--out {file}: its name must end in .csv")
    if not file.exists():
        return
    advice = "rename or move it, or name another file with --out"
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            if EXCEL_SEPARATOR.fullmatch(first.strip()):
                first = stream.readline()
            separator = max(SEPARATORS, key=first.count)
            if next(csv.reader([first], delimiter=separator), []) != list(header):
                raise DataError(f"--out {file}: exists, and is not a file that this command wrote; {advice}")
            rows = [row for row in csv.reader(stream, delimiter=separator) if len(row) >= 2]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--out {file}: exists, and cannot be read as CSV ({error}); {advice}") from error
    cells = [{path_cell(path): spreadsheet_cell(label) for path, label in labels.items()} for labels in known]
    typed = sum(label.strip() not in {labels.get(path, "") for labels in cells} for path, label, *_ in rows)
    if typed:
        raise DataError(
            f"--out {file}: exists, and {typed} of its labels were typed or changed by hand; merge them into your own "
            f"labels first (docs/labels.md), then delete it; or {advice}"
        )
