"""Warnings about ingested images that a user should read before relying on figures made from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from winnow.config import FEW_LABELS, Data
from winnow.data.dataset import TEST, TRAIN, VALIDATION, number_equal_keys
from winnow.data.sources import Source
from winnow.data.splits import LEFT_OUT
from winnow.evaluation.intervals import smallest_upper_end
from winnow.records.ingest import NearDuplicates
from winnow.steps.image_storage import MUCH_CROPPED, StoredImages

SHOWN_CLASSES = 10


def data_warnings(
    data: Data, source: Source, stored: StoredImages, split_N: NDArray[np.uint8], table_SC: NDArray[np.int64]
) -> list[str]:
    """Return the warnings about the data."""
    warnings = []
    if stored.rejected:
        first = stored.rejected[0]
        warnings.append(
            f"{len(stored.rejected)} files cannot be used and were set aside, the first: {first.file} "
            f"({first.reason}); all are listed in the record"
        )
    too_small = len(stored.labels_N) - stored.large_enough
    if stored.training_size is not None and too_small > len(stored.labels_N) / 2:
        warnings.append(
            f"{too_small} of {len(stored.labels_N)} images are smaller than data.training_size "
            f"({stored.training_size}): enlarging them costs time and adds no detail; set it to auto"
        )
    warnings += _preprocessing_warnings(stored)
    warnings += _duplicate_warnings(stored, split_N)
    warnings += _group_warnings(data, stored, split_N)
    budget = data.label_budget
    if budget and (short := [name for name, n in zip(source.classes, table_SC[TRAIN], strict=True) if n < budget]):
        warnings.append(f"{class_names(short)}: all labels are used, fewer than the budget of {budget} per class")
    if missing := [name for name, count in zip(source.classes, table_SC[TEST], strict=True) if count == 0]:
        warnings.append(f"there is no test image of {class_names(missing)}")
    if (available := int(table_SC[VALIDATION].sum())) < FEW_LABELS:
        groups_N = stored.groups_N[(split_N == VALIDATION) & (stored.labels_N >= 0)]
        in_groups = "" if stored.group_keys_N16 is None else f" in {len(np.unique(groups_N))} groups"
        least_loss = smallest_upper_end(available, groups_N=groups_N)
        warnings.append(
            f"only {available} labelled validation images{in_groups}, fewer than {FEW_LABELS}: intervals are wide; "
            f"even for a file that changes no prediction, labels alone only show a loss below {least_loss:.1f} points"
        )
    return warnings


def near_duplicate_warnings(near: NearDuplicates, group_by: str) -> list[str]:
    """Return a warning where held-out images almost equal training images. `near`: details.near_duplicates."""
    if not near.found:
        return []
    held_out, train = near.pairs[0]
    message = (
        f"{near.found} of {near.looked_at} held-out images almost equal a training image, as {held_out} does "
        f"{train}; the report shows the first. Figures may be slightly too good"
    )
    if group_by == "none":
        return [f"{message}; if file names show which images belong together, set data.group_by"]
    return [f"{message}: the pairs are in different groups of data.group_by, such as one object photographed twice"]


def _preprocessing_warnings(stored: StoredImages) -> list[str]:
    """Return warnings about what the centre crop discards, and about values above the range."""
    warnings, count = [], len(stored.labels_N)
    if stored.preprocessing.resize == "crop" and stored.much_cut > count / 2:
        warnings.append(
            f"the centre crop leaves out more than {MUCH_CROPPED:.0%} of the long side of {stored.much_cut} of {count} "
            "images; if classes differ near the ends of the images, set data.resize to pad or stretch"
        )
    if stored.clipped:
        warnings.append(
            f"{stored.clipped} gray images hold values above {2**stored.preprocessing.bits - 1}, which become white; "
            f"set data.bits to more than {stored.preprocessing.bits}"
        )
    return warnings


def _duplicate_warnings(stored: StoredImages, split_N: NDArray[np.uint8]) -> list[str]:
    is_used = split_N != LEFT_OUT
    groups, labels = number_equal_keys(stored.keys_N16)[is_used], stored.labels_N[is_used]
    warnings = []
    if copies := len(groups) - len(np.unique(groups)):
        warnings.append(f"{copies} images are exact copies of others; copies share a split")
    labelled_groups = np.unique(np.stack([groups, labels])[:, labels >= 0], axis=1)[0]
    if conflicting := len(labelled_groups) - len(np.unique(labelled_groups)):
        warnings.append(f"{conflicting} images occur under more than one class; at least one of their labels is wrong")
    return warnings


def _group_warnings(data: Data, stored: StoredImages, split_N: NDArray[np.uint8]) -> list[str]:
    """Return warnings where grouping makes the validation share differ from the configured one."""
    if stored.group_keys_N16 is None:
        return []
    warnings = stored.group_check.warnings()
    sizes = np.bincount(number_equal_keys(stored.group_keys_N16))
    share = float((split_N == VALIDATION)[~stored.named_test_N & (split_N != LEFT_OUT)].mean())
    summary = f"data.group_by makes {len(sizes)} groups of {len(split_N)} images, the largest of {sizes.max()}"
    if len(sizes) == len(split_N):
        return [*warnings, f"{summary}: no two images share one; check that it matches their paths"]
    if not 0.5 < share / data.validation_fraction < 2:
        scope = "of those outside the test set that the source names " if stored.named_test_N.any() else ""
        warnings.append(f"{summary}: {scope}{share:.0%} are validation images, not {data.validation_fraction:.0%}")
    return warnings


def class_names(names: list[str]) -> str:
    """Return class names for a sentence."""
    shown = ", ".join(repr(name) for name in names[:SHOWN_CLASSES])
    remainder = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{remainder}"
