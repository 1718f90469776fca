"""`winnow predict`: the promoted model on a person's files and folders, as a table, or streamed to CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import registered_models
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.deploy.file_predictor import Prediction, predict_files
from winnow.deploy.runtimes import RuntimeUnavailable
from winnow.errors import DataError, MissingExtra, WinnowError
from winnow.evaluation.abstention import describe
from winnow.printable import printable, spreadsheet_cell
from winnow.records import read_json, renamed

SHOWN_AT_MOST = 1000
"""Rows of a table on the terminal."""
ROWS_AT_ONCE = 10_000
"""Of a Parquet file."""
SHOWN_REJECTED = 10
Row = list[Any]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a prediction."""

    top: int = 1
    """How many classes."""
    abstain_below: float = 0.0
    """Where the likeliest class is less likely than this, none is named."""
    out: Path | None = None


def predict(places: ProjectPaths, config: Config, paths: list[Path], which: str, wanted: Wanted) -> int:
    """Print or write class and probability of every file; where one cannot be used the status is 2."""
    if wanted.out and wanted.out.suffix.lower() not in WRITERS:
        raise DataError(f"--out {wanted.out}: it is to end in {' or '.join(WRITERS)}")
    if not 0 <= wanted.abstain_below <= 1:
        raise DataError(f"--abstain-below {wanted.abstain_below:g}: a probability is a number from 0 to 1")
    name = registered_model_name(config)
    version = registered_models.get(places, name, which)
    folder = registered_models.fetch(places, name, version)
    count, predictions = predict_files(folder, paths, wanted.top)
    if count == 0:
        raise DataError("there is no image to predict: only companions of images (.txt, .csv, ...) or nothing at all")
    console = Terminal(stderr=True)
    if not wanted.out and count > SHOWN_AT_MOST:
        raise DataError(f"{count} files are too many to show; name a file for them: --out predictions.csv")
    rejected: list[Prediction] = []
    rows = _rows(_watched(predictions, count, console), wanted, rejected)
    try:
        if wanted.out:
            _write(rows, wanted.out, wanted.top)
            console.print(f"{count} files in {wanted.out}")
        else:
            _show(list(rows), wanted.top)
    except RuntimeUnavailable as error:
        raise WinnowError(f"{version} of {name} cannot run here: {error}") from error
    console.print(f"By {version} of {name}")
    if wanted.abstain_below > 0:
        console.print(_told_of_abstention(read_json(folder / "card.json"), wanted.abstain_below))
    for prediction in rejected[:SHOWN_REJECTED]:
        console.print(f"winnow: {printable(prediction.path)}: {prediction.reason}")
    if len(rejected) > SHOWN_REJECTED:
        console.print(f"winnow: {len(rejected) - SHOWN_REJECTED} more files cannot be used")
    if len(rejected) == count:
        raise DataError("none of these files is an image that can be read")
    return 2 if rejected else 0


def _write(rows: Iterator[Row], out: Path, top: int) -> None:
    with WRITERS[out.suffix.lower()](out, top) as write:
        for row in rows:
            write(row)


def _watched(predictions: Iterator[Prediction], count: int, console: Console) -> Iterator[Prediction]:
    """The same, with a bar, a rate and the time left on a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=count, rate="")
        for prediction in predictions:
            yield prediction
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.0f} images/s" if speed else "")


def _told_of_abstention(card: dict[str, Any], threshold: float) -> str:
    """Return what such a threshold gave on labelled images, by the model's card."""
    given = card.get("test", {}).get("abstention", {})
    told = [describe(given[split], threshold, split) for split in ("test", "validation") if split in given]
    if not told:
        return f"Nothing is known of what --abstain-below {threshold:g} is worth: this model met no test images"
    return f"--abstain-below {threshold:g} when it was measured: {'; '.join(told)}"


def _rows(predictions: Iterator[Prediction], wanted: Wanted, rejected: list[Prediction]) -> Iterator[Row]:
    """path, then class and probability by turns, then why there is none."""
    for prediction in predictions:
        row: Row = [printable(prediction.path)]
        if prediction.reason:
            rejected.append(prediction)
            yield [*row, *("", None) * wanted.top, prediction.reason]
            continue
        unsure = prediction.probabilities[0] < wanted.abstain_below
        for name, chance in zip(prediction.classes, prediction.probabilities, strict=True):
            row += ["" if unsure else name, chance]
        yield [*row, f"abstained: less than {wanted.abstain_below:g}" if unsure else ""]


def _header(top: int) -> list[str]:
    names = ["path"]
    for rank in range(1, top + 1):
        more = "" if rank == 1 else f"_{rank}"
        names += [f"class{more}", f"probability{more}"]
    return [*names, "reason"]


def _show(rows: list[Row], top: int) -> None:
    """As wide as it takes: the terminal may wrap a long path, but nothing is cut."""
    table = Table(*("image", *_header(top)[1:-1]), box=None, header_style="bold", pad_edge=False)
    for row in rows:
        if row[2] is not None:
            texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row[:-1]]
            texts[1] = texts[1] or "(unsure)"
            table.add_row(*(Text(text) for text in texts))
    if table.row_count:
        widths = [max(len(str(cell)) for cell in (column.header, *column.cells)) for column in table.columns]
        console = Terminal(soft_wrap=False)
        Terminal(width=max(console.width, sum(widths) + 2 * len(widths)), soft_wrap=False).print(table)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name beside `path`, which becomes it when all is written; nothing is left of a half."""
    try:
        with renamed(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"--out {path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _csv(path: Path, top: int) -> Iterator[Callable[[Row], object]]:
    with _whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_header(top))
        yield lambda row: writer.writerow(
            [f"{cell:.6f}" if isinstance(cell, float) else spreadsheet_cell(cell or "") for cell in row]
        )


@contextmanager
def _parquet(path: Path, top: int) -> Iterator[Callable[[Row], object]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "tables") from error
    names = _header(top)
    kinds = [pyarrow.float64() if name.startswith("probability") else pyarrow.string() for name in names]
    schema = pyarrow.schema(zip(names, kinds, strict=True))
    rows: list[Row] = []

    with _whole(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:

        def flush() -> None:
            columns = zip(*rows, strict=True) if rows else ([] for _ in names)
            arrays = [pyarrow.array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) >= ROWS_AT_ONCE:
                flush()

        yield write
        flush()


WRITERS = {".csv": _csv, ".parquet": _parquet}
