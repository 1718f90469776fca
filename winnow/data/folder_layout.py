"""Find the class folders of a tree from names alone, by the same rules for a folder on disk and for an archive.

    cat/a.jpg              or    train/cat/a.jpg
    cat/2024/b.png               test/cat/b.jpg         optional
    dog/c.jpg                    val/dog/c.jpg          optional, counted as training: splits are by hash
    unlabelled/d.jpg             unlabelled/d.jpg       optional, its name is data.unlabelled

Split folders may have many names (winnow.data.split_names); a name that only looks like a split is an error, never a
class. A class name in two Unicode forms is one class. Hidden and system folders and the usual companions of images
(winnow.data.system_files) are skipped and counted; any other file is expected to be an image.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from winnow.data.split_names import Split, looks_like_split, parse_split
from winnow.errors import DataError
from winnow.printable import printable

EXPECTED_LAYOUT = """expected at least two class folders with images in them:
    {0}/cat/1.jpg, {0}/dog/2.jpg
or  {0}/train/cat/1.jpg, {0}/train/dog/2.jpg and optionally {0}/test/cat/3.jpg;
images without a label belong in {0}/{1}/"""
SHOWN_FOLDERS = 5


class FolderLevels(Protocol):
    """The two upper levels of a tree of files, without hidden folders."""

    where: str
    """The path of the tree, for messages."""

    def top_folders(self) -> list[str]:
        """Return the folders at the top, sorted."""

    def subfolders(self, top: str) -> list[str]:
        """Return the folders inside a top folder, sorted."""

    def count_stray_files(self, top: str) -> int:
        """Return the number of files directly in a top folder, or in the root (""), that could be images."""

    def skipped_folders(self) -> Counter[str]:
        """Return the number of files by hidden or system folder; complete after `count` or `images`."""


@dataclass(frozen=True, order=True)
class Branch:
    """A folder whose files, at any depth, belong to one class and one split."""

    parts: tuple[str, ...]
    """The path of the folder from the top."""
    name: str | None
    """The class; None for images without a label."""
    is_test: bool


@dataclass(frozen=True)
class Layout:
    """The branches of a tree, sorted by their folders, and the folders around them."""

    branches: tuple[Branch, ...]
    container_folders: tuple[str, ...]
    """The folders that should hold folders only; "" is the top."""

    def branch_of(self, folders: tuple[str, ...]) -> Branch | None:
        """Return the branch of a file in these folders, or None."""
        return self._by_parts.get(folders[:1]) or self._by_parts.get(folders[:2])

    @cached_property
    def _by_parts(self) -> dict[tuple[str, ...], Branch]:
        return {branch.parts: branch for branch in self.branches}


def normalize_unicode(name: str) -> str:
    """Return a name in Unicode's composed form (NFC); macOS decomposes accents, most tables do not."""
    return unicodedata.normalize("NFC", name)


def detect_layout(shape: FolderLevels, unlabelled: str) -> Layout:
    """Return the layout of a tree by the rules above. Raises DataError where it is ambiguous or splits are unknown."""
    top_folders = shape.top_folders()
    labelled = [top for top in top_folders if normalize_unicode(top) != normalize_unicode(unlabelled)]
    splits = {top: split for top in labelled if (split := parse_split(top))}
    other_folders = [top for top in labelled if top not in splits]
    holders = [""]
    branches: list[Branch] = []
    _check_split_names(shape, labelled)
    if _has_split_folders(shape, splits, other_folders, unlabelled):
        for top in labelled:
            is_test = splits[top] == "test"
            branches += [Branch((top, name), normalize_unicode(name), is_test) for name in shape.subfolders(top)]
        holders += labelled
    else:
        branches = [Branch((top,), normalize_unicode(top), False) for top in labelled]
    branches += [Branch((top,), None, False) for top in top_folders if top not in labelled]
    return Layout(tuple(sorted(branches, key=lambda branch: branch.parts)), tuple(holders))


def _has_split_folders(
    shape: FolderLevels, splits: Mapping[str, Split], other_folders: list[str], unlabelled: str
) -> bool:
    """Return whether the top holds splits, not classes. Raises DataError where it holds both."""
    with_folders = {top: split for top, split in splits.items() if shape.subfolders(top)}
    folders_only = [top for top in with_folders if not shape.count_stray_files(top)]
    if "train" in with_folders.values():
        if other_folders and any(with_folders[top] == "train" for top in folders_only):
            raise DataError(
                f"{shape.where}: beside train/ there may be test/, val/ and {unlabelled}/, but there is also "
                f"{_join_names(other_folders)}; move class folders into train/"
            )
        return not other_folders
    if folders_only:
        raise DataError(
            f"{shape.where}: {printable(folders_only[0])}/ holds class folders, but no train/ beside it does"
        )
    if len(splits) > 1 and not other_folders:
        raise DataError(
            f"{shape.where}: {_join_names(list(splits))} hold images and no class folders; put the images of each "
            "class into a folder of its own inside them, or name each image's class in a table (data.labels)"
        )
    return False


def _check_split_names(shape: FolderLevels, labelled: list[str]) -> None:
    """Raise DataError where folders that hold class folders have names that look like splits but are unknown."""
    unknown_splits = [top for top in labelled if looks_like_split(top) and not parse_split(top)]
    if not unknown_splits:
        return
    subfolders = {top: set(shape.subfolders(top)) for top in labelled}
    only_splits = all(map(looks_like_split, labelled))
    for top in unknown_splits:
        elsewhere = set().union(*(names for sibling, names in subfolders.items() if sibling != top))
        has_split_content = only_splits or subfolders[top] & elsewhere
        if has_split_content and (len(labelled) > 1 or subfolders[top]) and not shape.count_stray_files(top):
            raise DataError(
                f"{shape.where}: {printable(top)}/ looks like a split, but is not a known one; name the folders "
                "that hold class folders train/, test/ and val/ (Training, train_set, Validation and the like are read "
                "as well). If it is a class, give it another name"
            )


def _join_names(names: list[str]) -> str:
    return ", ".join(map(printable, names))


def list_classes(shape: FolderLevels, layout: Layout, images: Mapping[Branch, int], unlabelled: str) -> tuple[str, ...]:
    """Return the classes, sorted, given the image count of each branch. Raises DataError for an unusable data set."""
    where, expected = shape.where, EXPECTED_LAYOUT.format(shape.where, unlabelled)
    filled = [branch for branch in layout.branches if images.get(branch)]
    classes = sorted({branch.name for branch in filled if branch.name is not None and not branch.is_test})
    if test_only := sorted({branch.name for branch in filled if branch.name is not None} - set(classes)):
        raise DataError(f"{where}: test/ has classes that train/ lacks: {', '.join(map(printable, test_only))}")
    if not classes:
        raise DataError(f"{where}: no images in class folders; {expected}")
    if len(classes) < 2:
        parts = next(branch.parts for branch in filled if branch.name == classes[0])
        has_subfolders = len(parts) == 1 and shape.subfolders(parts[0])
        hint = f"; if {where}/{parts[0]} holds the class folders, set data.path to it" if has_subfolders else ""
        raise DataError(f"{where}: only one class ({printable(classes[0])}), a classifier needs two{hint}; {expected}")
    if unlabelled_names := sorted({"unlabelled", "unlabeled"} & set(classes)):
        parts = next(branch.parts for branch in filled if branch.name == unlabelled_names[0])
        remedy = "set data.unlabelled to this name"
        if len(parts) > 1:
            remedy = f"move it beside {parts[0]}/" + (f", and {remedy}" if parts[-1] != unlabelled else "")
        raise DataError(f"{where}: {'/'.join(parts)}/ would be a class; if it holds unlabelled images, {remedy}")
    return tuple(classes)


def layout_warnings(shape: FolderLevels, layout: Layout, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return warnings about files and folders that are no images of classes."""
    warnings = []
    if validation := [top for top in layout.container_folders if parse_split(top) == "validation"]:
        warnings.append(
            f"{printable(validation[0])}/ is used like train/: an image's pixels decide whether it is for validation"
        )
    if stray_files := sum(map(shape.count_stray_files, layout.container_folders)):
        warnings.append(f"{stray_files} files are outside class folders and are ignored")
    if empty := sorted({branch.name for branch in layout.branches if branch.name is not None} - set(classes)):
        warnings.append(f"class folders without images are ignored: {_join_names(empty)}")
    return (*warnings, *skipped_folder_warnings(shape), *_nested_split_warnings(shape, layout))


def skipped_folder_warnings(shape: FolderLevels) -> list[str]:
    """Return a warning about skipped hidden and system folders, or an empty list."""
    skipped = shape.skipped_folders()
    counts = ", ".join(f"{printable(name)} ({count})" for name, count in skipped.most_common(SHOWN_FOLDERS))
    return [f"{skipped.total()} files in hidden and system folders are skipped: {counts}"] if skipped else []


def _nested_split_warnings(shape: FolderLevels, layout: Layout) -> list[str]:
    """Return a warning where all class folders hold the same split folders, or an empty list."""
    subfolders = [
        set(names)
        for branch in layout.branches
        if branch.name and len(branch.parts) == 1 and (names := shape.subfolders(branch.parts[0]))
    ]
    if len(subfolders) < 2:
        return []
    shared = set.intersection(*subfolders)
    if len(set(map(parse_split, shared)) - {None}) > 1:
        return [
            f"the class folders hold {_join_names(sorted(shared))}, which are not read as splits: to keep them, put "
            "the class folders into train/ and test/, not the other way round"
        ]
    return []
