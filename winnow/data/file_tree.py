"""Trees of image files, on disk or packed, as winnow.data.folder_layout and winnow.data.sources look at them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from winnow.data.archives import Member, members
from winnow.data.decoding import Content
from winnow.data.folder_layout import Branch, Layout, Shape
from winnow.data.special_files import linked_folder
from winnow.data.split_names import split_of
from winnow.data.system_files import is_companion, is_passed_over
from winnow.errors import DataError
from winnow.printable import printable

LEVELS = 3
"""Folders by which the members of an archive are counted: one that wraps the rest, train/, the class."""


@dataclass(frozen=True)
class TreeContents:
    """An image of a tree."""

    name: str
    """Its path, with /, as the tree has it."""
    branch: Branch | None
    """None where no layout was asked for."""
    content: Callable[[], Content]
    """To be called before the next image is asked for."""


class Tree(Shape, Protocol):
    """A tree whose images can be walked again and again, in the same order."""

    def count(self, layout: Layout) -> tuple[Mapping[Branch, int], int]:
        """Images of each branch, and how many other files lie among them."""

    def images(self, layout: Layout | None = None) -> Iterator[TreeContents]:
        """The images of a layout's branches, or all of them."""

    def unusable(self, layout: Layout | None = None) -> list[tuple[str, str]]:
        """(name, reason) of images that `images` leaves out."""


class Folder:
    """A folder on disk. A link to a folder in place of a class is an error: DVC does not see what changes behind it."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)
        self._passed: Counter[str] = Counter()

    def tops(self) -> list[str]:
        """Folders in it. Raises DataError where one is a link."""
        return _subfolders(self.root, may_be_classes=True)

    def below(self, top: str) -> list[str]:
        """Folders in one of them, without links. Raises DataError where a link is in place of a class of a split."""
        return _subfolders(self.root / top, may_be_classes=split_of(top) is not None)

    def stray(self, top: str) -> int:
        """Files directly in it, or in one of its folders, that could be images."""
        return sum(entry.is_file() and not is_companion(entry.name) for entry in _entries(self.root / top))

    def count(self, layout: Layout) -> tuple[Mapping[Branch, int], int]:
        """Images of each branch, and how many other files lie among them."""
        images: Counter[Branch] = Counter()
        others = 0
        self._passed = Counter()
        for holder in layout.holders:
            _count_passed(self.root / holder, (entry.name for entry in _entries(self.root / holder)), self._passed)
        for branch in layout.branches:
            for _, is_image in files_below(self.root.joinpath(*branch.parts), self._passed):
                images[branch] += is_image
                others += not is_image
        return images, others

    def images(self, layout: Layout | None = None) -> Iterator[TreeContents]:
        """Sorted inside each folder."""
        if not layout:
            self._passed = Counter()
        for branch in layout.branches if layout else (None,):
            folder, passed = (self.root.joinpath(*branch.parts), None) if branch else (self.root, self._passed)
            for file, is_image in files_below(folder, passed):
                if is_image:
                    path = str(file)
                    yield TreeContents(file.relative_to(self.root).as_posix(), branch, lambda path=path: path)  # type: ignore[misc]

    def passed_over(self) -> Counter[str]:
        """Hidden and system folders, with the files in them, as `count` or `images` saw them last."""
        return self._passed

    def unusable(self, layout: Layout | None = None) -> list[tuple[str, str]]:
        """None: what cannot be read is seen when it is."""
        return []


class Archive:
    """A zip or tar; one folder that holds all the others is passed over. It is read once here, for what is in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._unusable: list[tuple[tuple[str, ...], str]] = []
        images: Counter[tuple[str, ...]] = Counter()
        others: Counter[tuple[str, ...]] = Counter()
        self._passed: Counter[str] = Counter()
        for member in members(path):
            if hidden := _hidden_folder(member):
                self._passed[hidden] += 1
            elif member.parts:
                found = others if is_companion(member.parts[-1]) else images
                found[member.parts[:-1][:LEVELS]] += 1
                if member.problem and found is images:
                    self._unusable.append((member.parts, member.problem))
        tops = {folders[:1] for folders in images}
        is_wrapped = len(tops) == 1 and any(len(folders) > 1 for folders in images)
        self._wrapping = (
            tops.pop() if is_wrapped else ()
        )  # one class makes no data set: it is the folder that was packed
        self._images, self._others = self._inner(images), self._inner(others)

    def tops(self) -> list[str]:
        """Folders at the top that hold images."""
        return sorted({folders[0] for folders in self._images if folders})

    def below(self, top: str) -> list[str]:
        """Folders in one of them that hold images."""
        return sorted({at[1] for at in self._images if at[:1] == (top,) and len(at) > 1})

    def stray(self, top: str) -> int:
        """Images directly at the top, or in one of its folders."""
        return self._images[(top,) if top else ()]

    def count(self, layout: Layout) -> tuple[Mapping[Branch, int], int]:
        """Images of each branch, and how many other files lie among them."""
        counts: list[Counter[Branch]] = []
        for found in (self._images, self._others):
            counted: Counter[Branch] = Counter()
            for folders, count in found.items():
                if branch := layout.branch_of(folders):
                    counted[branch] += count
            counts.append(counted)
        return counts[0], counts[1].total()

    def images(self, layout: Layout | None = None) -> Iterator[TreeContents]:
        """In the archive's own order."""
        for member in members(self.path):
            if not member.parts or _hidden_folder(member) or is_companion(member.parts[-1]) or member.problem:
                continue
            branch = layout.branch_of(self._unwrapped(member.parts[:-1])) if layout else None
            if branch or not layout:
                yield TreeContents("/".join(member.parts), branch, lambda member=member: _content(member))  # type: ignore[misc]

    def passed_over(self) -> Counter[str]:
        """Hidden and system folders, with the files in them."""
        return self._passed

    def unusable(self, layout: Layout | None = None) -> list[tuple[str, str]]:
        """Members that are links, encrypted, too large, or whose names lead out."""
        return [
            ("/".join(parts), problem)
            for parts, problem in self._unusable
            if not layout or layout.branch_of(self._unwrapped(parts[:-1]))
        ]

    def _inner(self, found: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
        """Counts by the folders inside the one that wraps them."""
        inner: Counter[tuple[str, ...]] = Counter()
        for folders, count in found.items():
            inner[self._unwrapped(folders)] += count
        return inner

    def _unwrapped(self, folders: tuple[str, ...]) -> tuple[str, ...]:
        return folders[len(self._wrapping) :]


def _hidden_folder(member: Member) -> str:
    """Return the hidden or system folder that a member lies in; a name that leads out is not hidden, but told."""
    return next((part for part in member.parts[:-1] if is_passed_over(part) and part != ".."), "")


def _content(member: Member) -> Content:
    try:
        return member.read()
    except ValueError as error:
        return error


def files_below(
    folder: Path, passed: Counter[str] | None = None, unreadable: list[OSError] | None = None
) -> Iterator[tuple[Path, bool]]:
    """All files below a folder, sorted inside each folder, and whether each should be an image.

    Hidden and system folders are passed over; `passed` counts the files in them. A folder that cannot be read goes to
    `unreadable`; without such a list it raises DataError.
    """

    def stop(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append(error)
            return
        raise DataError(f"{printable(str(error.filename))}: cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, onerror=stop):
        if passed is not None:
            _count_passed(Path(place), folders, passed)
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        for name in sorted(names):
            yield Path(place, name), not is_companion(name)


def _count_passed(place: Path, names: Iterable[str], passed: Counter[str]) -> None:
    """Count the files in the folders among `names` that are passed over; one that cannot be read counts none."""
    for name in names:
        if is_passed_over(name) and (files := sum(len(files) for _, _, files in os.walk(place / name))):
            passed[name] += files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{printable(str(folder))}: cannot be read ({error.strerror})") from error


def _subfolders(folder: Path, *, may_be_classes: bool) -> list[str]:
    try:
        folders = [entry for entry in _entries(folder) if entry.is_dir() and not is_passed_over(entry.name)]
    except OSError as error:  # it may be listed, and not entered
        raise DataError(f"{printable(str(folder))}: cannot be read ({error.strerror})") from error
    linked = [entry for entry in folders if entry.is_symlink()]
    if linked and may_be_classes:
        raise DataError(linked_folder(linked[0]))
    return [entry.name for entry in folders if entry not in linked]
