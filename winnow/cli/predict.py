"""`winnow predict`: apply the promoted model to files and folders; print a table, or stream to CSV or Parquet."""

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
from winnow.deploy.runtime_properties import RuntimeUnavailable
from winnow.errors import DataError, MissingExtra, WinnowError
from winnow.evaluation.abstention import describe_counts
from winnow.printable import printable, spreadsheet_cell
from winnow.records import DeploymentCard, atomic_path
from winnow.records.report import Abstention

MAX_ROWS_SHOWN = 1000
"""Rows of the table on the terminal at most."""
ROWS_PER_GROUP = 10_000
"""Rows of a Parquet row group."""
SHOWN_REJECTED = 10
Row = list[Any]


@dataclass(frozen=True)
class PredictOptions:
    """The options of a prediction."""

    top: int = 1
    """The number of classes per image."""
    abstain_below: float = 0.0
    """No class is named where the most likely one has a lower probability."""
    out: Path | None = None


def predict_paths(paths: ProjectPaths, config: Config, files: list[Path], model: str, options: PredictOptions) -> int:
    """Print or write class and probability of every file; the status is 2 where one cannot be used."""
    if options.out and options.out.suffix.lower() not in WRITERS:
        raise DataError(f"--out {options.out}: it must end in {' or '.join(WRITERS)}")
    if not 0 <= options.abstain_below <= 1:
        raise DataError(f"--abstain-below {options.abstain_below:g}: a probability is a number from 0 to 1")
    name = registered_model_name(config)
    version = registered_models.get(paths, name, model)
    folder = registered_models.fetch(paths, name, version)
    count, predictions = predict_files(folder, files, options.top)
    if count == 0:
        raise DataError("there is no image to predict: the paths hold only other files (.txt, .csv, ...) or nothing")
    console = Terminal(stderr=True)
    if not options.out and count > MAX_ROWS_SHOWN:
        raise DataError(f"{count} files are too many for the terminal; write them to a file: --out predictions.csv")
    rejected: list[Prediction] = []
    rows = _rows(_with_progress(predictions, count, console), options, rejected)
    try:
        if options.out:
            _write(rows, options.out, options.top)
            console.print(f"{count} files in {options.out}")
        else:
            _show(list(rows), options.top)
    except RuntimeUnavailable as error:
        raise WinnowError(f"{version} of {name} cannot run here: {error}") from error
    console.print(f"By {version} of {name}")
    if options.abstain_below > 0:
        test = DeploymentCard.read(folder).test
        console.print(_describe_abstention(test.abstention if test else Abstention(), options.abstain_below))
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


def _with_progress(predictions: Iterator[Prediction], count: int, console: Console) -> Iterator[Prediction]:
    """Yield the same predictions, with a bar, a rate and the time left on a terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=count, rate="")
        for prediction in predictions:
            yield prediction
            rate = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{rate:.0f} images/s" if rate else "")


def _describe_abstention(abstention: Abstention, threshold: float) -> str:
    """Return the effect of this threshold on labelled images."""
    splits = {"test": abstention.test, "validation": abstention.validation}
    descriptions = [describe_counts(counts, threshold, split) for split, counts in splits.items() if counts]
    if not descriptions:
        return f"The effect of --abstain-below {threshold:g} is not known: this model was not evaluated on test images"
    return f"--abstain-below {threshold:g} as measured: {'; '.join(descriptions)}"


def _rows(predictions: Iterator[Prediction], options: PredictOptions, rejected: list[Prediction]) -> Iterator[Row]:
    """Yield rows of path, then class and probability alternately, then the reason where there is none."""
    for prediction in predictions:
        row: Row = [printable(prediction.path)]
        if prediction.reason:
            rejected.append(prediction)
            yield [*row, *("", None) * options.top, prediction.reason]
            continue
        is_unsure = prediction.probabilities[0] < options.abstain_below
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            row += ["" if is_unsure else name, probability]
        yield [*row, f"abstained: less than {options.abstain_below:g}" if is_unsure else ""]


def _header(top: int) -> list[str]:
    names = ["path"]
    for rank in range(1, top + 1):
        suffix = "" if rank == 1 else f"_{rank}"
        names += [f"class{suffix}", f"probability{suffix}"]
    return [*names, "reason"]


def _show(rows: list[Row], top: int) -> None:
    """Print the table at full width: the terminal may wrap a long path, but nothing is cut."""
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
def _atomic(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`, which becomes `path` when all is written; nothing is left otherwise."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"--out {path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _csv(path: Path, top: int) -> Iterator[Callable[[Row], object]]:
    with _atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
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

    with _atomic(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:

        def flush() -> None:
            columns = zip(*rows, strict=True) if rows else ([] for _ in names)
            arrays = [pyarrow.array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) >= ROWS_PER_GROUP:
                flush()

        yield write
        flush()


WRITERS = {".csv": _csv, ".parquet": _parquet}
