"""Details of the record of ingest: classes, splits, preprocessing, and what was set aside."""

from __future__ import annotations

from typing import Literal

from winnow.records.model import RecordModel
from winnow.records.step_record import StepRecord

TestSetOrigin = Literal["named by the source", "by hash"]


class SplitCounts(RecordModel):
    """A number for each split."""

    train: int
    """Number in the training split."""
    validation: int
    """Number in the validation split."""
    test: int
    """Number in the test split."""

    def of(self, split: str) -> int:
        """Return the number of a split by its name."""
        count: int = getattr(self, split)
        return count


class RejectedFile(RecordModel):
    """A file that cannot be used."""

    file: str
    """Path of the file, relative to the source."""
    reason: str
    """Reason why it cannot be used."""


class NearDuplicates(RecordModel):
    """Held-out images that almost equal a training image."""

    looked_at: int
    """Number of held-out images (validation and test) that were compared."""
    found: int
    """Number of pairs that were found."""
    pairs: list[tuple[str, str]]
    """The most similar pairs as (held-out file, training file), most similar first; at most 100."""
    positions: list[tuple[int, int]]
    """The same pairs by their positions in the data set."""


class IngestDetails(RecordModel):
    """The images that ingest read, and their splits."""

    source: str
    """Name of the data set, shown beside every number."""
    classes: list[str]
    """Names of the classes, in the order of their labels."""
    per_class: dict[str, SplitCounts]
    """Class -> number of labelled images in each split."""
    labels_per_class: int | None
    """The label budget: training labels of each class that may be used; None for all."""
    test_set: TestSetOrigin
    """Whether the source defines the test split, or hashes drew it."""
    resize_policy: str
    """How an image becomes a square, in words."""
    resize: str
    """The value of data.resize."""
    bits: int
    """Bits in use of 16-bit gray images."""
    training_size: int | None
    """Side in pixels of the second square that training crops from; None where there is none."""
    decoder: str
    """Digest of the pixels that the decoder makes of three fixed images. Another decoder may split differently."""
    groups: int | None
    """Number of groups; None without data.group_by."""
    groups_by_split: SplitCounts | None
    """Number of groups in each split; None without data.group_by."""
    ignored_files: int
    """Number of files that were skipped, such as hidden and system files."""
    rejected: list[RejectedFile]
    """Files that cannot be used."""
    near_duplicates: NearDuplicates
    """Held-out images that are nearly equal to a training image."""


IngestRecord = StepRecord[IngestDetails]
