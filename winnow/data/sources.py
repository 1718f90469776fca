"""Where images come from: the sample's archive, a person's folder or archive, the official CIFAR-10.

A source is a list of classes and a stream of items in an order that depends on names alone (in an archive: its own). It
never holds more than a few files: the stream is walked twice, once to count. Which folders are classes says
winnow.data.folder_layout; a table of labels (winnow.data.label_table) does without them. Links to folders are not
followed; in place of a class folder they are an error.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from winnow.config import Data
from winnow.config.data import archive_title
from winnow.config.section import NOTHING
from winnow.data.archives import members
from winnow.data.decoding import Item
from winnow.data.file_tree import Archive, Folder, Tree
from winnow.data.folder_layout import LAYOUT, classes_of, layout_of, passed_over_remarks, remarks
from winnow.data.image_tables import read_image_table
from winnow.data.label_table import Labels, key_of, read_labels
from winnow.errors import DataError
from winnow.printable import printable


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
    """(file, reason) of what is not among the items and should be."""


def open_source(data: Data, scratch: Path) -> Source:
    """The source that params.yaml names. Raises DataError when it holds no images or fewer than two classes."""
    if data.source == "cifar10":
        return _open_cifar10(scratch / "downloads")
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist (looked for in {Path.cwd()})")
    if data.source == "sample":
        return open_sample(path)
    if data.source == "folder" and not path.is_dir():
        raise DataError(f"data.path: {path} is no folder; {LAYOUT.format(path, data.unlabelled)}")
    title = data.title
    if data.labels == NOTHING:
        return _grouped(open_tree(_tree(data, path), title, data.unlabelled), data.group_by)
    table = read_image_table(Path(data.labels))
    labels = table or read_labels(Path(data.labels), path)
    if data.group_by == "table" and not labels.has_groups:
        raise DataError(f"data.group_by is table, but {labels.file} names no group in a column of that name")
    if table:
        told = f"the images are those in {table.file.name}; {path} is not looked at"
        return _grouped(Source(title, table.classes, len(table.labels), table.items, warnings=(told,)), data.group_by)
    assert isinstance(labels, Labels)
    return _grouped(open_labelled(_tree(data, path), title, labels), data.group_by)


def _tree(data: Data, path: Path) -> Tree:
    return Archive(path) if data.source == "archive" else Folder(path)


def _grouped(source: Source, group_by: str) -> Source:
    """The same source, whose items name the group that data.group_by puts them into."""
    if group_by in ("none", "table"):
        return source
    expression = None if group_by == "folder" else re.compile(group_by)

    def group_of(item: Item) -> str:
        if expression is None:
            return item.name.rpartition("/")[0]
        found = expression.search(item.name)
        return (found[1] or "") if found else ""

    def items() -> Iterator[Item]:
        for item in source.items():
            yield replace(item, group=group_of(item))

    return replace(source, items=items)


def open_sample(path: Path) -> Source:
    """A tar of train/<class>/<file> and test/<class>/<file> and nothing else."""
    files: Counter[tuple[str, str]] = Counter()
    for member in members(path):
        if member.problem or len(member.parts) != 3 or member.parts[0] not in ("train", "test"):
            raise DataError(f"{path}: {'/'.join(member.parts)!r} is no plain file train/<class>/<file> or test/...")
        files[member.parts[0], member.parts[1]] += 1
    classes = tuple(sorted({folder for part, folder in files if part == "train"}))
    if strangers := sorted({folder for _, folder in files} - set(classes)):
        raise DataError(f"{path}: test/ has classes that train/ lacks: {', '.join(strangers)}")
    if len(classes) < 2:
        raise DataError(f"{path}: images of {len(classes)} classes in train/, a classifier needs two")
    numbers = {name: label for label, name in enumerate(classes)}

    def items() -> Iterator[Item]:
        for member in members(path):
            part, name, _ = member.parts
            yield Item("/".join(member.parts), numbers[name], part == "test", member.read())

    return Source(archive_title(path), classes, files.total(), items)


def open_tree(tree: Tree, title: str, unlabelled: str = "unlabelled") -> Source:
    """Class folders, or train/ and test/ of class folders, and perhaps a folder of unlabelled images."""
    layout = layout_of(tree, unlabelled)
    images, ignored = tree.count(layout)
    classes = classes_of(tree, layout, images, unlabelled)
    numbers: dict[str | None, int] = {name: label for label, name in enumerate(classes)}

    def items() -> Iterator[Item]:
        for found in tree.images(layout):
            branch = found.branch
            assert branch is not None
            yield Item(printable(found.name), numbers.get(branch.name, -1), branch.is_test, found.content())

    missing = _printable(tree.unusable(layout))
    count = sum(images.values()) - len(missing)
    named, told = tuple(map(printable, classes)), remarks(tree, layout, classes)
    return Source(title, named, count, items, ignored, told, missing)


def open_labelled(tree: Tree, title: str, labels: Labels) -> Source:
    """The images anywhere in a tree, with the labels of a table; what it does not name has none."""
    count = named = 0
    for found in tree.images():
        count, named = count + 1, named + (key_of(found.name) in labels.rows)
    if not named:
        raise DataError(
            f"{labels.file} names none of the {count} images in {tree.where}: its paths are to be relative to that; "
            f"the first are {', '.join(list(labels.rows)[:3])}"
        )
    unusable = tree.unusable()
    lost: set[str] = set()
    if named < len(labels.rows):
        lost = (
            labels.rows.keys()
            - {key_of(found.name) for found in tree.images()}
            - {key_of(name) for name, _ in unusable}
        )

    def items() -> Iterator[Item]:
        for found in tree.images():
            label, is_test, group = labels.rows.get(key_of(found.name), (-1, False, ""))
            yield Item(printable(found.name), label, is_test, found.content(), group)

    table, told = labels.file.name, passed_over_remarks(tree)
    if labels.doubled:
        told.append(f"{len(labels.doubled)} paths stand twice in {table}, the first: {labels.doubled[0]}")
    if bare := count - named:
        told.append(f"{bare} images are not in {table} and are used without a label")
    missing = [*unusable, *((name, f"in {table}, but not there") for name in sorted(lost))]
    return Source(title, labels.classes, count, items, warnings=tuple(told), missing=_printable(missing))


def _printable(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((printable(name), reason) for name, reason in rows)


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
