"""Open a source of images: the sample's archive, the user's folder or archive, or the official CIFAR-10.

A source is a list of classes and a stream of items in an order that depends on names alone (in an archive, on its own
order). It never holds more than a few files: the stream is walked twice, once to count. winnow.data.folder_layout
finds the class folders; a table of labels (winnow.data.label_table) needs none. Links to folders are not followed; in
place of a class folder they are an error.
"""

from __future__ import annotations

import io
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
from winnow.config.section import NO_FILE
from winnow.data.archives import iter_members
from winnow.data.file_tree import Archive, Folder, Tree
from winnow.data.folder_layout import (
    EXPECTED_LAYOUT,
    detect_layout,
    layout_warnings,
    list_classes,
    normalize_unicode,
    skipped_folder_warnings,
)
from winnow.data.groups import path_group
from winnow.data.image_items import Item
from winnow.data.image_tables import read_image_table
from winnow.data.label_table import LabelTable, read_labels
from winnow.errors import DataError
from winnow.printable import printable
from winnow.stall_limit import stall_limit


@dataclass(frozen=True)
class Source:
    """The classes, sorted, and the items of a data set in a fixed order."""

    title: str
    classes: tuple[str, ...]
    count: int
    """The number of items."""
    items: Callable[[], Iterator[Item]]
    ignored: int = 0
    """The number of files that are no images."""
    warnings: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    """(file, reason) of the images that should be among the items but are not."""


def open_source(data: Data, scratch: Path) -> Source:
    """Open the source that params.yaml names. Raises DataError where it has no images or fewer than two classes."""
    if data.source == "cifar10":
        return _open_cifar10(scratch / "downloads")
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"data.path: {path} does not exist (looked for in {Path.cwd()})")
    if data.source == "sample":
        return open_sample(path)
    if data.source == "folder" and not path.is_dir():
        raise DataError(f"data.path: {path} is not a folder; {EXPECTED_LAYOUT.format(path, data.unlabelled)}")
    title = data.title
    if data.labels == NO_FILE:
        return _with_groups(open_tree(_open_files(data, path), title, data.unlabelled), data.group_by)
    table = read_image_table(Path(data.labels))
    labels = table or read_labels(Path(data.labels), path)
    if data.group_by == "table" and not labels.has_groups:
        raise DataError(f"data.group_by is table, but {labels.file} names no groups in a column `group`")
    if table:
        warning = f"the images in {table.file.name} are used; {path} is ignored"
        source = Source(title, table.classes, len(table.labels), table.items, warnings=(warning,))
        return _with_groups(source, data.group_by)
    assert isinstance(labels, LabelTable)
    return _with_groups(open_labelled(_open_files(data, path), title, labels), data.group_by)


def _open_files(data: Data, path: Path) -> Tree:
    return Archive(path) if data.source == "archive" else Folder(path)


def _with_groups(source: Source, group_by: str) -> Source:
    """Return the source with the group that data.group_by gives each item."""
    if group_by in ("none", "table"):
        return source

    def items() -> Iterator[Item]:
        for item in source.items():
            yield replace(item, group=path_group(item.name, group_by))

    return replace(source, items=items)


def open_sample(path: Path) -> Source:
    """Open a tar that holds train/<class>/<file> and test/<class>/<file> only."""
    files: Counter[tuple[str, str]] = Counter()
    for member in iter_members(path):
        if member.problem or len(member.parts) != 3 or member.parts[0] not in ("train", "test"):
            raise DataError(f"{path}: {'/'.join(member.parts)!r} is not a file train/<class>/<file> or test/...")
        files[member.parts[0], member.parts[1]] += 1
    classes = tuple(sorted({folder for part, folder in files if part == "train"}))
    if test_only := sorted({folder for _, folder in files} - set(classes)):
        raise DataError(f"{path}: test/ has classes that train/ lacks: {', '.join(test_only)}")
    if len(classes) < 2:
        raise DataError(f"{path}: images of {len(classes)} classes in train/, a classifier needs two")
    numbers = {name: label for label, name in enumerate(classes)}

    def items() -> Iterator[Item]:
        for member in iter_members(path):
            part, name, _ = member.parts
            yield Item("/".join(member.parts), numbers[name], part == "test", member.read())

    return Source(archive_title(path), classes, files.total(), items)


def open_tree(tree: Tree, title: str, unlabelled: str = "unlabelled") -> Source:
    """Open class folders, or train/ and test/ of class folders, with an optional folder of unlabelled images."""
    layout = detect_layout(tree, unlabelled)
    images, ignored = tree.count(layout)
    classes = list_classes(tree, layout, images, unlabelled)
    numbers: dict[str | None, int] = {name: label for label, name in enumerate(classes)}

    def items() -> Iterator[Item]:
        for image in tree.images(layout):
            branch = image.branch
            assert branch is not None
            yield Item(printable(image.name), numbers.get(branch.name, -1), branch.is_test, image.content())

    unusable = tree.unusable_images(layout)
    count = sum(images.values()) - len(unusable)
    missing = _printable([*unusable, *tree.outside_images()])
    warnings = layout_warnings(tree, layout, classes)
    return Source(title, tuple(map(printable, classes)), count, items, ignored, warnings, missing)


def open_labelled(tree: Tree, title: str, labels: LabelTable) -> Source:
    """Open the images anywhere in a tree with the labels of a table; images without a row have no label."""
    count = listed = 0
    for image in tree.images():
        count, listed = count + 1, listed + (normalize_unicode(image.name) in labels.rows)
    if not listed:
        raise DataError(
            f"{labels.file} lists none of the {count} images in {tree.where}: its paths must be relative to that; "
            f"the first are {', '.join(list(labels.rows)[:3])}"
        )
    unusable = [*tree.unusable_images(), *tree.outside_images()]
    absent: set[str] = set()
    if listed < len(labels.rows):
        absent = (
            labels.rows.keys()
            - {normalize_unicode(image.name) for image in tree.images()}
            - {normalize_unicode(name) for name, _ in unusable}
        )

    def items() -> Iterator[Item]:
        for image in tree.images():
            label, is_test, group = labels.rows.get(normalize_unicode(image.name), (-1, False, ""))
            yield Item(printable(image.name), label, is_test, image.content(), group)

    table, warnings = labels.file.name, skipped_folder_warnings(tree)
    if labels.repeated:
        warnings.append(f"{len(labels.repeated)} paths have several rows in {table}, the first: {labels.repeated[0]}")
    if unlisted := count - listed:
        warnings.append(f"{unlisted} images are not in {table} and are used without a label")
    missing = [*unusable, *((name, f"listed in {table}, but missing") for name in sorted(absent))]
    return Source(title, labels.classes, count, items, warnings=tuple(warnings), missing=_printable(missing))


def _printable(rows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((printable(name), reason) for name, reason in rows)


def _open_cifar10(downloads: Path) -> Source:
    from torchvision.datasets import CIFAR10

    downloads.mkdir(parents=True, exist_ok=True)
    try:
        with stall_limit():
            splits = [CIFAR10(str(downloads), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded ({error}). Download {CIFAR10.filename} (md5 {CIFAR10.tgz_md5}) from "
            f"{CIFAR10.url} elsewhere and put it into {downloads}, or use data.source: sample or folder"
        ) from error
    return array_source("CIFAR-10", tuple(splits[0].classes), [(split.data, split.targets) for split in splits])


def array_source(title: str, classes: tuple[str, ...], splits: list[tuple[NDArray[np.uint8], list[int]]]) -> Source:
    """Return a source of images in memory.

    `splits` are those of training and test: images uint8 (N, H, W, 3) and their labels. `classes` must be sorted.
    """

    def items() -> Iterator[Item]:
        for name, (images_NHWC, labels) in zip(("train", "test"), splits, strict=True):
            for index, label in enumerate(labels):
                bitmap = io.BytesIO()
                Image.fromarray(images_NHWC[index]).save(bitmap, "BMP")
                yield Item(f"{name}/{classes[label]}/{index:05d}", label, name == "test", bitmap.getvalue())

    return Source(title, classes, sum(len(labels) for _, labels in splits), items)
