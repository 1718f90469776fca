"""Check the groups that data.group_by gives: show examples and warn of suspicious patterns.

A pattern such as `(.+)_\\d+\\.jpg` captures the class folder in the group's name, so that crops of one photograph in
two classes become two groups and may be in different splits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from winnow.config.data import GROUP_PATTERN
from winnow.data.image_items import Item

MAX_TRACKED_GROUPS, MAX_EXAMPLES = 1000, 3


@dataclass
class GroupCheck:
    """Counts of groups, taken while images are stored.

    It keeps the size and first file of up to MAX_TRACKED_GROUPS groups.
    """

    group_by: str
    classes: tuple[str, ...]
    grouped: int = 0
    """The number of images with a group."""
    containing_class: int = 0
    """The number of images whose group contains the name of their class."""
    sizes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        """Count an image."""
        if not item.group:
            return
        self.grouped += 1
        self.containing_class += item.label >= 0 and self.classes[item.label] in item.group.split("/")
        if item.group in self.first or len(self.first) < MAX_TRACKED_GROUPS:
            self.first.setdefault(item.group, item.name)
            self.sizes[item.group] += 1

    def examples(self) -> list[str]:
        """Return a description of up to three groups, the largest first."""
        return [
            f"{group!r}: {count} image{'s' if count > 1 else ''}, such as {self.first[group]}"
            for group, count in self.sizes.most_common(MAX_EXAMPLES)
        ]

    def warnings(self) -> list[str]:
        """Return warnings about the groups of a pattern."""
        if self.group_by in ("none", "folder", "table") or not self.grouped:
            return []
        warnings = []
        if self.containing_class > self.grouped / 2:
            warnings.append(
                f"data.group_by: the groups contain the class folder ({self.examples()[0]}), so that images of one "
                f"group in two classes count as two groups; name the group without it, as '{GROUP_PATTERN}' does"
            )
        single = sum(count == 1 for count in self.sizes.values())
        if single > len(self.sizes) / 2:
            warnings.append(
                f"data.group_by: {single} of {len(self.sizes)} groups hold a single image; make sure that the pattern "
                f"leaves out what differs inside a group. Examples: {'; '.join(self.examples())}"
            )
        return warnings
