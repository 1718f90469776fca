"""Whether data.group_by names the groups that were meant: examples to look at, and what is suspicious.

A pattern such as `(.+)_\\d+\\.jpg` takes the class folder into the group's name, so that crops of one photograph in two
classes are two groups, on both sides of a split.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from winnow.config.data import GROUP_PATTERN
from winnow.data.decoding import Item

FOLLOWED, EXAMPLES = 1000, 3


@dataclass
class GroupCheck:
    """What is counted while images are stored. Of FOLLOWED groups the first file and the size are held."""

    group_by: str
    classes: tuple[str, ...]
    grouped: int = 0
    """Images with a group."""
    with_class: int = 0
    """Of those, images whose group holds the name of their class."""
    sizes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        """Count an image."""
        if not item.group:
            return
        self.grouped += 1
        self.with_class += item.label >= 0 and self.classes[item.label] in item.group.split("/")
        if item.group in self.first or len(self.first) < FOLLOWED:
            self.first.setdefault(item.group, item.name)
            self.sizes[item.group] += 1

    def examples(self) -> list[str]:
        """Three groups in words, the largest first."""
        return [
            f"{group!r}: {count} image{'s' if count > 1 else ''}, such as {self.first[group]}"
            for group, count in self.sizes.most_common(EXAMPLES)
        ]

    def warnings(self) -> list[str]:
        """What is suspicious about the groups of a pattern."""
        if self.group_by in ("none", "folder", "table") or not self.grouped:
            return []
        found = []
        if self.with_class > self.grouped / 2:
            found.append(
                f"data.group_by: the groups contain the class folder ({self.examples()[0]}), so that images of one "
                f"group in two classes count as two groups; name the group without it, as '{GROUP_PATTERN}' does"
            )
        single = sum(count == 1 for count in self.sizes.values())
        if single > len(self.sizes) / 2:
            found.append(
                f"data.group_by: {single} of {len(self.sizes)} groups hold a single image; see that the pattern leaves "
                f"out what differs inside a group. Examples: {'; '.join(self.examples())}"
            )
        return found
