"""Which folders are classes: the same rules for a folder on disk and for an archive, read off the names alone.

    cat/a.jpg              or    train/cat/a.jpg
    cat/2024/b.png               test/cat/b.jpg         optional
    dog/c.jpg                    val/dog/c.jpg          optional, counted as training: splits are by hash
    unlabelled/d.jpg             unlabelled/d.jpg       optional, its name is data.unlabelled

Folders of splits have many names (winnow.data.split_names); what only looks like a split is an error, never a class.
A class may be spelt in two Unicode forms: it is one class. Hidden and system folders and the usual companions of images
(winnow.data.system_files) are passed over and counted; any other file is expected to be an image.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from winnow.data.split_names import Split, looks_like_split, split_of
from winnow.errors import DataError
from winnow.printable import printable

LAYOUT = """expected at least two class folders with images in them:
    {0}/cat/1.jpg, {0}/dog/2.jpg
or  {0}/train/cat/1.jpg, {0}/train/dog/2.jpg and, if there are any, {0}/test/cat/3.jpg;
images without a label lie in {0}/{1}/"""
SHOWN_FOLDERS = 5


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

    def passed_over(self) -> Counter[str]:
        """Hidden and system folders by name, with the number of files in them; complete after `count` or `images`."""


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


def spelt_once(name: str) -> str:
    """Return a name in Unicode's composed form (NFC): macOS writes accents in another form than most tables do."""
    return unicodedata.normalize("NFC", name)


def layout_of(shape: Shape, unlabelled: str) -> Layout:
    """Read the rules above off a tree. Raises DataError where two of them apply, or where splits would be classes."""
    tops = shape.tops()
    labelled = [top for top in tops if spelt_once(top) != spelt_once(unlabelled)]
    splits = {top: split for top in labelled if (split := split_of(top))}
    strangers = [top for top in labelled if top not in splits]
    holders = [""]
    branches: list[Branch] = []
    _refuse_unknown_splits(shape, labelled)
    if _hold_classes(shape, splits, strangers, unlabelled):
        for top in labelled:
            is_test = splits[top] == "test"
            branches += [Branch((top, name), spelt_once(name), is_test) for name in shape.below(top)]
        holders += labelled
    else:
        branches = [Branch((top,), spelt_once(top), False) for top in labelled]
    branches += [Branch((top,), None, False) for top in tops if top not in labelled]
    return Layout(tuple(sorted(branches, key=lambda branch: branch.parts)), tuple(holders))


def _hold_classes(shape: Shape, splits: Mapping[str, Split], strangers: list[str], unlabelled: str) -> bool:
    """Return whether the top holds splits, not classes. Raises DataError where it holds both."""
    filled = {top: split for top, split in splits.items() if shape.below(top)}
    unmixed = [top for top in filled if not shape.stray(top)]
    if "train" in filled.values():
        if strangers and any(filled[top] == "train" for top in unmixed):
            raise DataError(
                f"{shape.where}: beside train/ there may be test/, val/ and {unlabelled}/, but there is also "
                f"{_listed(strangers)}; move class folders into train/"
            )
        return not strangers
    if unmixed:
        raise DataError(
            f"{shape.where}: {printable(unmixed[0])}/ holds class folders, but there is no train/ beside it that does"
        )
    if len(splits) > 1 and not strangers:
        raise DataError(
            f"{shape.where}: {_listed(list(splits))} hold images and no class folders; put the images of each class "
            "into a folder of its own inside them, or name each image's class in a table (data.labels)"
        )
    return False


def _refuse_unknown_splits(shape: Shape, labelled: list[str]) -> None:
    """Raise DataError where folders of class folders have names that look like splits and are none that is known."""
    doubtful = [top for top in labelled if looks_like_split(top) and not split_of(top)]
    if not doubtful:
        return
    below = {top: set(shape.below(top)) for top in labelled}
    only_splits = all(map(looks_like_split, labelled))
    for top in doubtful:
        others = set().union(*(names for other, names in below.items() if other != top))
        if (only_splits or below[top] & others) and (len(labelled) > 1 or below[top]) and not shape.stray(top):
            raise DataError(
                f"{shape.where}: {printable(top)}/ looks like a split, but it is none that is known; name the folders "
                "that hold class folders train/, test/ and val/ (Training, train_set, Validation and the like are read "
                "as well). If it is a class, give it another name"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names))


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
    if more := [top for top in layout.holders if split_of(top) == "validation"]:
        found.append(f"{printable(more[0])}/ is used like train/: which images validate is decided by their pixels")
    if stray := sum(map(shape.stray, layout.holders)):
        found.append(f"{stray} files lie outside class folders and are ignored")
    if empty := sorted({branch.name for branch in layout.branches if branch.name is not None} - set(classes)):
        found.append(f"class folders without images are ignored: {_listed(empty)}")
    return (*found, *passed_over_remarks(shape), *_inner_remarks(shape, layout))


def passed_over_remarks(shape: Shape) -> list[str]:
    """One line on hidden and system folders, none where there are none."""
    passed = shape.passed_over()
    named = ", ".join(f"{printable(name)} ({count})" for name, count in passed.most_common(SHOWN_FOLDERS))
    return [f"{passed.total()} files in hidden and system folders are passed over: {named}"] if passed else []


def _inner_remarks(shape: Shape, layout: Layout) -> list[str]:
    """Warnings about folders inside class folders that may be splits, or the classes themselves."""
    inside = [set(shape.below(branch.parts[0])) for branch in layout.branches if branch.name and len(branch.parts) == 1]
    inside = [names for names in inside if names]
    if len(inside) < 2:
        return []
    shared = set.intersection(*inside)
    if len(set(map(split_of, shared)) - {None}) > 1:
        return [
            f"the class folders hold {_listed(sorted(shared))}, which are not read as splits: to keep them, put the "
            "class folders into train/ and test/, not the other way round"
        ]
    return []
