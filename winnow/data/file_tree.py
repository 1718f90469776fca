"""Trees of image files, on disk or in an archive, behind one interface.

winnow.data.folder_layout finds the classes in such a tree, winnow.data.sources reads its images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from winnow.data.archives import OUTSIDE, Member, iter_members
from winnow.data.folder_layout import Branch, FolderLevels, Layout
from winnow.data.image_items import Content
from winnow.data.special_files import linked_folder_message
from winnow.data.split_names import parse_split
from winnow.data.system_files import is_companion_file, is_skipped_folder
from winnow.errors import DataError
from winnow.printable import printable

COUNTED_LEVELS = 3
"""The depth of folders at which members of an archive are counted: one that wraps the rest, train/, the class."""


@dataclass(frozen=True)
class TreeImage:
    """One image of a tree."""

    name: str
    """The path inside the tree, with /."""
    branch: Branch | None
    """The branch that contains the image; None without a layout."""
    content: Callable[[], Content]
    """Return the content. Call it before asking for the next image."""


class Tree(FolderLevels, Protocol):
    """A tree whose images can be walked repeatedly, in the same order."""

    def count(self, layout: Layout) -> tuple[Mapping[Branch, int], int]:
        """Return the number of images of each branch, and the number of other files among them."""

    def images(self, layout: Layout | None = None) -> Iterator[TreeImage]:
        """Yield the images of a layout's branches, or all of them."""

    def unusable_images(self, layout: Layout | None = None) -> list[tuple[str, str]]:
        """Return (name, reason) of the images that `images` leaves out and `count` counts."""

    def outside_images(self) -> list[tuple[str, str]]:
        """Return (name, reason) of the images whose path points outside the tree; they are in no folder of it."""


class Folder:
    """A folder on disk. A link in place of a class folder is an error: DVC does not see changes behind a link."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)
        self._skipped: Counter[str] = Counter()

    def top_folders(self) -> list[str]:
        """Return the folders at the top. Raises DataError where one is a link."""
        return _subfolders(self.root, may_be_classes=True)

    def subfolders(self, top: str) -> list[str]:
        """Return the folders inside a top folder, without links. Raises DataError for a link in place of a class."""
        return _subfolders(self.root / top, may_be_classes=parse_split(top) is not None)

    def count_stray_files(self, top: str) -> int:
        """Return the number of files directly in a top folder, or in the root (""), that could be images."""
        return sum(entry.is_file() and not is_companion_file(entry.name) for entry in _entries(self.root / top))

    def count(self, layout: Layout) -> tuple[Mapping[Branch, int], int]:
        """Return the number of images of each branch, and the number of other files among them."""
        images: Counter[Branch] = Counter()
        others = 0
        self._skipped = Counter()
        for holder in layout.container_folders:
            _count_skipped(self.root / holder, (entry.name for entry in _entries(self.root / holder)), self._skipped)
        for branch in layout.branches:
            for _, is_image in walk_files(self.root.joinpath(*branch.parts), self._skipped):
                images[branch] += is_image
                others += not is_image
        return images, others

    def images(self, layout: Layout | None = None) -> Iterator[TreeImage]:
        """Yield the images, sorted inside each folder."""
        if not layout:
            self._skipped = Counter()
        for branch in layout.branches if layout else (None,):
            folder, skipped = (self.root.joinpath(*branch.parts), None) if branch else (self.root, self._skipped)
            for file, is_image in walk_files(folder, skipped):
                if is_image:
                    path = str(file)
                    yield TreeImage(file.relative_to(self.root).as_posix(), branch, lambda path=path: path)  # type: ignore[misc]

    def skipped_folders(self) -> Counter[str]:
        """Return the number of files by hidden or system folder, as of the last `count` or `images`."""
        return self._skipped

    def unusable_images(self, layout: Layout | None = None) -> list[tuple[str, str]]:
        """Return an empty list: a file that cannot be read is rejected when it is decoded."""
        return []

    def outside_images(self) -> list[tuple[str, str]]:
        """Return an empty list: no file of a folder is outside it."""
        return []


class Archive:
    """A zip or tar, listed once on creation. A single folder that wraps all others is ignored."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._unusable: list[tuple[tuple[str, ...], str]] = []
        self._outside: list[tuple[str, str]] = []
        images: Counter[tuple[str, ...]] = Counter()
        others: Counter[tuple[str, ...]] = Counter()
        self._skipped: Counter[str] = Counter()
        for member in iter_members(path):
            if hidden := _hidden_folder(member):
                self._skipped[hidden] += 1
            elif not member.parts:
                continue
            elif member.problem == OUTSIDE:
                if not is_companion_file(member.parts[-1]):
                    self._outside.append(("/".join(member.parts), OUTSIDE))
            else:
                counts = others if is_companion_file(member.parts[-1]) else images
                counts[member.parts[:-1][:COUNTED_LEVELS]] += 1
                if member.problem and counts is images:
                    self._unusable.append((member.parts, member.problem))
        top_folders = {folders[:1] for folders in images}
        # A data set has two classes at least, so a single top folder is the one that was packed.
        is_wrapped = len(top_folders) == 1 and any(len(folders) > 1 for folders in images)
        self._wrapping = top_folders.pop() if is_wrapped else ()
        self._images, self._others = self._unwrap_counts(images), self._unwrap_counts(others)

    def top_folders(self) -> list[str]:
        """Return the folders at the top that hold images."""
        return sorted({folders[0] for folders in self._images if folders})

    def subfolders(self, top: str) -> list[str]:
        """Return the folders inside a top folder that hold images."""
        return sorted({folders[1] for folders in self._images if folders[:1] == (top,) and len(folders) > 1})

    def count_stray_files(self, top: str) -> int:
        """Return the number of images directly in a top folder, or in the root ("")."""
        return self._images[(top,) if top else ()]

    def count(self, layout: Layout) -> tuple[Mapping[Branch, int], int]:
        """Return the number of images of each branch, and the number of other files among them."""
        images, others = (_count_by_branch(counts, layout) for counts in (self._images, self._others))
        return images, others.total()

    def images(self, layout: Layout | None = None) -> Iterator[TreeImage]:
        """Yield the images in the archive's own order."""
        for member in iter_members(self.path):
            if not member.parts or _hidden_folder(member) or is_companion_file(member.parts[-1]) or member.problem:
                continue
            branch = layout.branch_of(self._unwrap(member.parts[:-1])) if layout else None
            if branch or not layout:
                yield TreeImage("/".join(member.parts), branch, lambda member=member: _read_member(member))  # type: ignore[misc]

    def skipped_folders(self) -> Counter[str]:
        """Return the number of files by hidden or system folder."""
        return self._skipped

    def unusable_images(self, layout: Layout | None = None) -> list[tuple[str, str]]:
        """Return the members that are links, encrypted or too large."""
        return [
            ("/".join(parts), problem)
            for parts, problem in self._unusable
            if not layout or layout.branch_of(self._unwrap(parts[:-1]))
        ]

    def outside_images(self) -> list[tuple[str, str]]:
        """Return the members whose path points outside the archive."""
        return list(self._outside)

    def _unwrap_counts(self, counts: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
        """Return the counts by folders without the one that wraps them."""
        unwrapped: Counter[tuple[str, ...]] = Counter()
        for folders, count in counts.items():
            unwrapped[self._unwrap(folders)] += count
        return unwrapped

    def _unwrap(self, folders: tuple[str, ...]) -> tuple[str, ...]:
        return folders[len(self._wrapping) :]


def _count_by_branch(counts: Counter[tuple[str, ...]], layout: Layout) -> Counter[Branch]:
    by_branch: Counter[Branch] = Counter()
    for folders, count in counts.items():
        if branch := layout.branch_of(folders):
            by_branch[branch] += count
    return by_branch


def _hidden_folder(member: Member) -> str:
    """Return the hidden or system folder that contains a member, or ""; `..` is not hidden but an error of its own."""
    return next((part for part in member.parts[:-1] if is_skipped_folder(part) and part != ".."), "")


def _read_member(member: Member) -> Content:
    try:
        return member.read()
    except ValueError as error:
        return error


def walk_files(
    folder: Path, skipped: Counter[str] | None = None, unreadable: list[OSError] | None = None
) -> Iterator[tuple[Path, bool]]:
    """Yield (file, is it expected to be an image) for all files below a folder, sorted inside each folder.

    Hidden and system folders are skipped; `skipped` counts the files in them. A folder that cannot be read is added to
    `unreadable`. Raises DataError for it where that list is missing.
    """

    def handle_error(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append(error)
            return
        raise DataError(f"{printable(str(error.filename))}: cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(folder, onerror=handle_error):
        if skipped is not None:
            _count_skipped(Path(parent), folders, skipped)
        folders[:] = sorted(name for name in folders if not is_skipped_folder(name))
        for name in sorted(names):
            yield Path(parent, name), not is_companion_file(name)


def _count_skipped(parent: Path, names: Iterable[str], skipped: Counter[str]) -> None:
    """Count the files in hidden and system folders among `names`; a folder that cannot be read counts none."""
    for name in names:
        if is_skipped_folder(name) and (files := sum(len(files) for _, _, files in os.walk(parent / name))):
            skipped[name] += files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{printable(str(folder))}: cannot be read ({error.strerror})") from error


def _subfolders(folder: Path, *, may_be_classes: bool) -> list[str]:
    try:
        folders = [entry for entry in _entries(folder) if entry.is_dir() and not is_skipped_folder(entry.name)]
    except OSError as error:  # a folder may be listable but not enterable
        raise DataError(f"{printable(str(folder))}: cannot be read ({error.strerror})") from error
    linked = [entry for entry in folders if entry.is_symlink()]
    if linked and may_be_classes:
        raise DataError(linked_folder_message(linked[0]))
    return [entry.name for entry in folders if entry not in linked]
