"""Details of the record of ingest: classes, splits, preprocessing, and what was set aside."""

from __future__ import annotations

from typing import Literal

from winnow.records.model import RecordModel
from winnow.records.step_record import StepRecord

TestSetOrigin = Literal["named by the source", "by hash"]


class SplitCounts(RecordModel):
    """A number for each split."""

    train: int
    validation: int
    test: int

    def of(self, split: str) -> int:
        """Return the number of a split by its name."""
        count: int = getattr(self, split)
        return count


class RejectedFile(RecordModel):
    """A file that cannot be used."""

    file: str
    reason: str


class NearDuplicates(RecordModel):
    """Held-out images that almost equal a training image."""

    looked_at: int
    """Held-out images that were compared."""
    found: int
    pairs: list[tuple[str, str]]
    """(held-out file, training file), the most alike first; the first ones only."""
    positions: list[tuple[int, int]]
    """The same pairs by their positions in the data set."""


class IngestDetails(RecordModel):
    """The images that ingest read, and their splits."""

    source: str
    """Name of the data, which stands beside every number."""
    classes: list[str]
    per_class: dict[str, SplitCounts]
    """Labelled images of each class."""
    labels_per_class: int | None
    """The label budget."""
    test_set: TestSetOrigin
    resize_policy: str
    resize: str
    bits: int
    """Bits in use of 16-bit gray images."""
    training_size: int | None
    """Side of the stored training images, where it differs from the input's."""
    decoder: str
    """Digest of the decoder's answers: another decoder may split differently."""
    groups: int | None
    groups_by_split: SplitCounts | None
    ignored_files: int
    rejected: list[RejectedFile]
    near_duplicates: NearDuplicates


IngestRecord = StepRecord[IngestDetails]
