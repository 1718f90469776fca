"""The images that may be suggested for labelling: those of the training split without a visible label.

Left out are images whose label would teach nothing:

- copies, equal in every pixel to a labelled image or to another candidate;
- images that a label would move into the test split. Unlabelled images cannot be tested on, so those in the test range
  of the hash train (winnow/data/splits.py). With a label they test. Images that were chosen for learning would make the
  test set easier or harder than the data, and with data.group_by one label would take a whole group out of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.config import Config, Data
from winnow.data.dataset import TRAIN, ImageSet, number_equal_keys
from winnow.data.folder_layout import normalize_unicode
from winnow.data.groups import group_key, path_group
from winnow.data.image_tables import read_image_table
from winnow.data.label_table import read_labels
from winnow.data.splits import draw_label_budget, key_fractions
from winnow.records import IngestRecord


@dataclass(frozen=True)
class Candidates:
    """Training images with a label that may be used, and those that may be suggested."""

    labelled_L: NDArray[np.int64]
    """Indices of the images whose label may be used."""
    free_F: NDArray[np.int64]
    """Indices of the images that may be suggested."""
    hidden: int
    """Number of images among `free_F` whose label data.labels_per_class hides."""
    copies: int
    """Number of images left out because another one has the same pixels."""
    future_tests: int
    """Number of images left out because a label would move them into the test split."""


def find_candidates(config: Config, images: ImageSet, root: Path) -> Candidates:
    """Return the images that may be suggested. `root`: the folder that paths in params.yaml are relative to."""
    labelled_L = draw_label_budget(images, config.data.label_budget, config.finetune.seeds[0])
    is_free_N = images.split_N == TRAIN
    is_free_N[labelled_L] = False
    is_test_N = is_free_N & (images.labels_N < 0) & in_test_range(config.data, images, root)
    free = np.flatnonzero(is_free_N & ~is_test_N)
    numbers_N = number_equal_keys(images.keys_N16)
    _, first = np.unique(numbers_N[free], return_index=True)
    distinct_F = free[np.sort(first)]
    distinct_F = distinct_F[~np.isin(numbers_N[distinct_F], numbers_N[labelled_L])]
    return Candidates(
        labelled_L,
        distinct_F.astype(np.int64),
        hidden=int((images.labels_N[distinct_F] >= 0).sum()),
        copies=len(free) - len(distinct_F),
        future_tests=int(is_test_N.sum()),
    )


def in_test_range(data: Data, images: ImageSet, root: Path) -> NDArray[np.bool_]:
    """Return which images, bool (N,), ingest would put into the test split if they had a label.

    None where the source names its test set, and where the groups cannot be read again (a Parquet table of images).
    """
    none_N = np.zeros(len(images.labels_N), dtype=np.bool_)
    if images.folder is None or IngestRecord.read(images.folder).details.test_set == "named by the source":
        return none_N
    keys_N16 = np.asarray(images.keys_N16)
    if data.group_by != "none":
        names = _group_names(data, images, root)
        if names is None:
            return none_N
        pairs = zip(names, keys_N16, strict=True)
        digests = b"".join(group_key(name) if name else key.tobytes() for name, key in pairs)
        keys_N16 = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16)
    u_N = key_fractions(keys_N16)
    return (u_N >= data.validation_fraction) & (u_N < data.validation_fraction + data.test_fraction)


def _group_names(data: Data, images: ImageSet, root: Path) -> list[str] | None:
    """Return the group of each image, "" for none; None where the table of groups cannot be read again."""
    if data.group_by != "table":
        return [path_group(name, data.group_by) for name in images.files]
    table = root / data.labels
    if read_image_table(table) is not None:
        return None
    rows = read_labels(table, root / data.path).rows
    return [rows.get(normalize_unicode(name), (-1, False, ""))[2] for name in images.files]
