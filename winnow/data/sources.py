"""Where images come from: the sample's archive, a person's folder, the official CIFAR-10.

A source is a list of classes and a stream of items in an order that depends on names alone. It never holds more than
a few files: the stream is walked twice, once to count. What a folder may look like inside:

    photos/cat/a.jpg              or    photos/train/cat/a.jpg
    photos/cat/2024/b.png               photos/test/cat/b.jpg         optional
    photos/dog/c.jpg                    photos/val/dog/c.jpg          optional, counted as training: splits are by hash
    photos/unlabelled/d.jpg             photos/unlabelled/d.jpg       optional, its name is data.unlabelled

A table of labels (winnow.data.labels) does without class folders: the images then lie anywhere below the folder.

Hidden files and the usual companions of images (Thumbs.db, .txt, .json, ...) are ignored and counted; any other file
is expected to be an image. Links to folders are followed at the level of classes, not below.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.config import Data
from winnow.config.data import archive_title, printable
from winnow.config.section import NOTHING
from winnow.data.decoding import MAX_FILE_BYTES, Item
from winnow.data.labels import key_of, read_labels
from winnow.errors import DataError

COMPANIONS = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xml", ".yaml", ".yml", ".md", ".html"),
    *(".ini", ".db", ".log"),
)
MORE_TRAINING = ("val", "valid", "validation")
LAYOUT = """expected at least two class folders with images in them:
    {0}/cat/1.jpg, {0}/dog/2.jpg
or  {0}/train/cat/1.jpg, {0}/train/dog/2.jpg and, if there are any, {0}/test/cat/3.jpg;
images without a label lie in {0}/{1}/"""


@dataclass(frozen=True)
class _Branch:
    """A folder whose files, at any depth, are of one class (None: no label) and of one part."""

    folder: Path
    name: str | None
    is_test: bool


@dataclass(frozen=True)
class Source:
    """Classes, sorted, and the items in a fixed order."""

    title: str
    classes: tuple[str, ...]
    count: int
    items: Callable[[], Iterator[Item]]
    ignored: int = 0
    warnings: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    """(file, reason) of what should be there and is not."""


def open_source(data: Data, scratch: Path) -> Source:
    """The source that params.yaml names. Raises DataError when it holds no images or fewer than two classes."""
    if data.source == "cifar10":
        return _open_cifar10(scratch / "downloads")
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist (looked for in {Path.cwd()})")
    if data.source == "sample":
        return open_archive(path)
    return open_folder(path, data.unlabelled) if data.labels == NOTHING else open_labelled(path, Path(data.labels))


def open_archive(path: Path) -> Source:
    """A tar with train/<class>/<file> and test/<class>/<file>, read in place and in its own order."""
    files: Counter[tuple[str, str]] = Counter()
    for name, _ in _archived(path):
        part, folder, _ = name.parts
        files[part, folder] += 1
    classes = tuple(sorted({folder for part, folder in files if part == "train"}))
    if strangers := sorted({folder for _, folder in files} - set(classes)):
        raise DataError(f"{path}: test/ has classes that train/ lacks: {', '.join(strangers)}")
    if len(classes) < 2:
        raise DataError(f"{path}: images of {len(classes)} classes in train/, a classifier needs two")
    numbers = {name: label for label, name in enumerate(classes)}

    def items() -> Iterator[Item]:
        for name, content in _archived(path):
            yield Item(str(name), numbers[name.parts[1]], name.parts[0] == "test", content)

    return Source(archive_title(path), classes, files.total(), items)


def _archived(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Names and contents, in one pass. Nothing is unpacked to disk; names that could lead outside are errors anyway."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                safe = len(name.parts) == 3 and name.parts[0] in ("train", "test") and ".." not in name.parts
                opened = archive.extractfile(member) if member.isreg() and safe else None
                if opened is None:
                    raise DataError(f"{path}: {member.name!r} is no plain file train/<class>/<file> or test/...")
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{path}: {member.name!r} has more than {MAX_FILE_BYTES:,} bytes")
                yield name, opened.read()
            # tarfile takes a file that was cut off at a header for a whole one; whole ones end in two empty blocks.
            if not archive.fileobj or len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                raise DataError(f"{path} is cut off; fetch it again")
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged or no tar archive ({error}); fetch it again") from error


def open_folder(root: Path, unlabelled: str = "unlabelled") -> Source:
    """Class folders, or train/ and test/ of class folders, and perhaps a folder of unlabelled images."""
    layout = LAYOUT.format(root, unlabelled)
    if not root.is_dir():
        raise DataError(f"data.path: {root} is no folder; {layout}")
    branches, holders = _branches(root, unlabelled)
    counts = Counter((branch, is_image) for branch in branches for _, is_image in files_below(branch.folder))
    filled = [branch for branch in branches if counts[branch, True]]
    images, ignored = (sum(counts[branch, is_image] for branch in branches) for is_image in (True, False))
    classes = sorted({branch.name for branch in filled if branch.name and not branch.is_test})
    if strangers := sorted({branch.name for branch in filled if branch.name} - set(classes)):
        raise DataError(f"{root}: test/ has classes that train/ lacks: {', '.join(strangers)}")
    if not classes:
        raise DataError(f"{root}: no images in class folders; {layout}")
    if len(classes) < 2:
        inside = next(branch.folder for branch in filled if branch.name == classes[0])
        hint = f"; if {inside} holds the class folders, set data.path to it" if _subfolders(inside) else ""
        raise DataError(f"{root}: only one class ({classes[0]}), a classifier needs two{hint}; {layout}")
    if alike := sorted({"unlabelled", "unlabeled"} & set(classes)):
        raise DataError(f"{root}: {alike[0]}/ would be a class; if it holds unlabelled images, set data.unlabelled")
    empty = sorted({branch.name for branch in branches if branch.name} - set(classes))

    def items() -> Iterator[Item]:
        numbers: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        for branch in branches:
            label = numbers.get(branch.name, -1)
            for file, is_image in files_below(branch.folder):
                if is_image:
                    yield Item(printable(file.relative_to(root).as_posix()), label, branch.is_test, str(file))

    title, remarks = printable(root.resolve().name), _remarks(holders, empty)
    return Source(title, tuple(map(printable, classes)), images, items, ignored, remarks)


def open_labelled(root: Path, table: Path) -> Source:
    """The images anywhere below a folder, with the labels of a table; what it does not name has none."""
    if not root.is_dir():
        raise DataError(f"data.path: {root} is no folder")
    labels = read_labels(table, root)

    def images() -> Iterator[tuple[Path, str]]:
        for file, is_image in files_below(root):
            if is_image:
                yield file, key_of(file.relative_to(root).as_posix())

    def items() -> Iterator[Item]:
        for file, key in images():
            label, is_test = labels.rows.get(key, (-1, False))
            yield Item(printable(file.relative_to(root).as_posix()), label, is_test, str(file))

    count = named = 0
    for _, key in images():
        count, named = count + 1, named + (key in labels.rows)
    if not named:
        raise DataError(
            f"{table} names none of the {count} images below {root}: its paths are to be relative to that folder; "
            f"the first are {', '.join(list(labels.rows)[:3])}"
        )
    missing: set[str] = set()
    if named < len(labels.rows):
        missing = labels.rows.keys() - {key for _, key in images()}
    remarks = []
    if labels.doubled:
        remarks.append(f"{len(labels.doubled)} paths stand twice in {table.name}, the first: {labels.doubled[0]}")
    if bare := count - named:
        remarks.append(f"{bare} images are not in {table.name} and are used without a label")
    lost = tuple((printable(name), f"in {table.name}, but not in the folder") for name in sorted(missing))
    return Source(printable(root.resolve().name), labels.classes, count, items, warnings=tuple(remarks), missing=lost)


def _branches(root: Path, unlabelled: str) -> tuple[list[_Branch], list[Path]]:
    """Branches in the order of their paths, and the folders that should hold folders only."""
    holders = [root]
    tops = [folder for folder in _subfolders(root) if folder.name != unlabelled]
    parts = {folder.name.lower(): folder for folder in tops}
    strangers = [folder.name for folder in tops if folder.name.lower() not in ("train", "test", *MORE_TRAINING)]
    holds_classes = "train" in parts and bool(_subfolders(parts["train"]))
    if holds_classes and strangers and not _stray(parts["train"]):
        raise DataError(
            f"{root}: beside train/ there may be test/, val/ and {unlabelled}/, but there is also "
            f"{', '.join(strangers)}; move class folders into train/"
        )
    if holds_classes and not strangers:
        branches = [
            _Branch(folder, folder.name, top.name.lower() == "test") for top in tops for folder in _subfolders(top)
        ]
        holders += tops
    elif "test" in parts and _subfolders(parts["test"]) and not _stray(parts["test"]):
        raise DataError(f"{root}: test/ holds class folders, but there is no train/ beside it that does")
    else:
        branches = [_Branch(folder, folder.name, False) for folder in tops]
    if (root / unlabelled).is_dir():
        branches.append(_Branch(root / unlabelled, None, False))
    return sorted(branches, key=lambda branch: branch.folder), holders


def _remarks(holders: list[Path], empty: list[str]) -> tuple[str, ...]:
    """Warnings about what the folder holds besides images of classes."""
    remarks = []
    if more := [folder.name for folder in holders[1:] if folder.name.lower() in MORE_TRAINING]:
        remarks.append(f"{more[0]}/ is used like train/: which images validate is decided by their pixels")
    if stray := sum(map(_stray, holders)):
        remarks.append(f"{stray} files lie outside class folders and are ignored")
    if empty:
        remarks.append(f"class folders without images are ignored: {', '.join(map(printable, empty))}")
    return tuple(remarks)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _stray(folder: Path) -> int:
    """Files directly in a folder that could be images."""
    return sum(entry.is_file() and not _is_companion(entry.name) for entry in _entries(folder))


def files_below(folder: Path) -> Iterator[tuple[Path, bool]]:
    """All files below a folder, sorted inside each folder, and whether each should be an image."""

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield Path(place, name), not _is_companion(name)


def _is_companion(name: str) -> bool:
    return name.startswith(".") or Path(name).suffix.lower() in COMPANIONS


def _open_cifar10(downloads: Path) -> Source:
    from torchvision.datasets import CIFAR10

    downloads.mkdir(parents=True, exist_ok=True)
    try:
        parts = [CIFAR10(str(downloads), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded ({error}). Fetch {CIFAR10.filename} (md5 {CIFAR10.tgz_md5}) from "
            f"{CIFAR10.url} elsewhere and put it into {downloads}, or use data.source: sample or folder"
        ) from error
    return array_source("CIFAR-10", tuple(parts[0].classes), [(part.data, part.targets) for part in parts])


def array_source(title: str, classes: tuple[str, ...], parts: list[tuple[NDArray[np.uint8], list[int]]]) -> Source:
    """Training and test images uint8 (N, H, W, 3) in memory, each with its labels; `classes` must be sorted."""

    def items() -> Iterator[Item]:
        for part, (images_NHWC, labels) in zip(("train", "test"), parts, strict=True):
            for index, label in enumerate(labels):
                bitmap = io.BytesIO()
                Image.fromarray(images_NHWC[index]).save(bitmap, "BMP")
                yield Item(f"{part}/{classes[label]}/{index:05d}", label, part == "test", bitmap.getvalue())

    return Source(title, classes, sum(len(labels) for _, labels in parts), items)
