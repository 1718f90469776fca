"""Which folders are classes: the same rules for a folder on disk and for an archive, read off the names alone.

    cat/a.jpg              or    train/cat/a.jpg
    cat/2024/b.png               test/cat/b.jpg         optional
    dog/c.jpg                    val/dog/c.jpg          optional, counted as training: splits are by hash
    unlabelled/d.jpg             unlabelled/d.jpg       optional, its name is data.unlabelled

Hidden files and the usual companions of images (Thumbs.db, .txt, .json, ...) are ignored and counted; any other file
is expected to be an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol

from winnow.errors import DataError
from winnow.printable import printable

COMPANIONS = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".xml", ".yaml", ".yml", ".md", ".html"),
    *(".ini", ".db", ".log"),
)
MORE_TRAINING = ("val", "valid", "validation")
LAYOUT = """expected at least two class folders with images in them:
    {0}/cat/1.jpg, {0}/dog/2.jpg
or  {0}/train/cat/1.jpg, {0}/train/dog/2.jpg and, if there are any, {0}/test/cat/3.jpg;
images without a label lie in {0}/{1}/"""


class Shape(Protocol):
    """The two upper levels of a tree of files. Hidden folders do not count."""

    where: str
    """For messages."""

    def tops(self) -> list[str]:
        """Folders at the top, sorted."""

    def below(self, top: str) -> list[str]:
        """Folders in one of them, sorted."""

    def stray(self, top: str) -> int:
        """How many files that could be images lie directly in a top folder, or in the tree itself ("")."""


@dataclass(frozen=True, order=True)
class Branch:
    """A folder whose files, at any depth, are of one class (None: no label) and of one part."""

    parts: tuple[str, ...]
    """The folder, from the top."""
    name: str | None
    is_test: bool


@dataclass(frozen=True)
class Layout:
    """Branches, sorted by their folders, and the folders that should hold folders only ("" is the top)."""

    branches: tuple[Branch, ...]
    holders: tuple[str, ...]

    def branch_of(self, folders: tuple[str, ...]) -> Branch | None:
        """The branch of a file in these folders, if it is in one."""
        return self._by_parts.get(folders[:1]) or self._by_parts.get(folders[:2])

    @cached_property
    def _by_parts(self) -> dict[tuple[str, ...], Branch]:
        return {branch.parts: branch for branch in self.branches}


def is_companion(name: str) -> bool:
    """Whether a file is no image, by its name."""
    return name.startswith(".") or PurePosixPath(name).suffix.lower() in COMPANIONS


def layout_of(shape: Shape, unlabelled: str) -> Layout:
    """Read the rules above off a tree. Raises DataError where two of them apply."""
    tops = shape.tops()
    labelled = [top for top in tops if top != unlabelled]
    parts = {top.lower(): top for top in labelled}
    strangers = [top for top in labelled if top.lower() not in ("train", "test", *MORE_TRAINING)]
    holds_classes = "train" in parts and bool(shape.below(parts["train"]))
    holders = [""]
    if holds_classes and strangers and not shape.stray(parts["train"]):
        raise DataError(
            f"{shape.where}: beside train/ there may be test/, val/ and {unlabelled}/, but there is also "
            f"{', '.join(map(printable, strangers))}; move class folders into train/"
        )
    if holds_classes and not strangers:
        branches = [Branch((top, name), name, top.lower() == "test") for top in labelled for name in shape.below(top)]
        holders += labelled
    elif "test" in parts and shape.below(parts["test"]) and not shape.stray(parts["test"]):
        raise DataError(f"{shape.where}: test/ holds class folders, but there is no train/ beside it that does")
    else:
        branches = [Branch((top,), top, False) for top in labelled]
    if unlabelled in tops:
        branches.append(Branch((unlabelled,), None, False))
    return Layout(tuple(sorted(branches, key=lambda branch: branch.parts)), tuple(holders))


def classes_of(shape: Shape, layout: Layout, images: Mapping[Branch, int], unlabelled: str) -> tuple[str, ...]:
    """The classes, sorted, once the images of each branch are counted. Raises DataError for what is no data set."""
    where, expected = shape.where, LAYOUT.format(shape.where, unlabelled)
    filled = [branch for branch in layout.branches if images.get(branch)]
    classes = sorted({branch.name for branch in filled if branch.name is not None and not branch.is_test})
    if strangers := sorted({branch.name for branch in filled if branch.name is not None} - set(classes)):
        raise DataError(f"{where}: test/ has classes that train/ lacks: {', '.join(map(printable, strangers))}")
    if not classes:
        raise DataError(f"{where}: no images in class folders; {expected}")
    if len(classes) < 2:
        inside = next(branch.parts for branch in filled if branch.name == classes[0])
        holds_more = len(inside) == 1 and shape.below(inside[0])
        hint = f"; if {where}/{inside[0]} holds the class folders, set data.path to it" if holds_more else ""
        raise DataError(f"{where}: only one class ({printable(classes[0])}), a classifier needs two{hint}; {expected}")
    if alike := sorted({"unlabelled", "unlabeled"} & set(classes)):
        raise DataError(f"{where}: {alike[0]}/ would be a class; if it holds unlabelled images, set data.unlabelled")
    return tuple(classes)


def remarks(shape: Shape, layout: Layout, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Warnings about what the tree holds besides images of classes."""
    found = []
    if more := [top for top in layout.holders if top.lower() in MORE_TRAINING]:
        found.append(f"{more[0]}/ is used like train/: which images validate is decided by their pixels")
    if stray := sum(map(shape.stray, layout.holders)):
        found.append(f"{stray} files lie outside class folders and are ignored")
    if empty := sorted({branch.name for branch in layout.branches if branch.name is not None} - set(classes)):
        found.append(f"class folders without images are ignored: {', '.join(map(printable, empty))}")
    return tuple(found)
