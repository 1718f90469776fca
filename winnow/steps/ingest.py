"""Step 1: read images from any source into one array of pixels, split by content; DVC's hash of it is its version.

Files are decoded on all cores and written as they come, so memory does not grow with their number: only labels, keys
and flags (26 bytes per image) are held. A file that cannot be used is set aside with its reason; too many of them are
an error. The label budget hides nothing here: winnow.data.splits does, wherever labels are read.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from winnow.config import Config, Data
from winnow.data import near_duplicates
from winnow.data.dataset import PREPROCESSING_FILE, SPLITS, TEST, TRAIN, TRAINING_FILE, VALIDATION, number_equal_keys
from winnow.data.decoder_digest import decoder_digest
from winnow.data.gray_range import resolve_preprocessing
from winnow.data.preprocessing import ALL_BITS
from winnow.data.sources import Source, open_source
from winnow.data.splits import LEFT_OUT, assign_splits
from winnow.errors import DataError
from winnow.records import IngestDetails, IngestRecord, describe_files, publish, sha256_of, write_json, write_record
from winnow.records.ingest import NearDuplicates, SplitCounts
from winnow.steps.image_storage import StoredImages, store_images
from winnow.steps.ingest_warnings import class_names, data_warnings, near_duplicate_warnings

log = logging.getLogger(__name__)

FILES = ("images.npy", "labels.npy", "split.npy", "keys.npy", "files.txt", "classes.json", PREPROCESSING_FILE)
GROUPS = "groups.npy"
SHOWN_ALIKE = 100


def ingest(config: Config, out: Path, scratch: Path) -> IngestRecord:
    """Read data.source, decode, split, and write a stored data set (winnow.data.dataset) to `out`.

    Raises DataError when the images cannot be used as they are; `out` is then unchanged.
    """
    return ingest_images(config.data, out, scratch)


def ingest_images(data: Data, out: Path, scratch: Path) -> IngestRecord:
    """Do what `ingest` does, given its section of params.yaml alone."""
    source = open_source(data, scratch)
    log.info("ingest: %d files, %d classes (%s)", source.count, len(source.classes), source.title)
    with publish(out) as folder, tempfile.TemporaryFile(dir=folder) as signatures:
        preprocessing = resolve_preprocessing(data, source)
        if preprocessing.bits != ALL_BITS:
            log.info("ingest: gray images of 16 bits: %d is white (data.bits)", 2**preprocessing.bits - 1)
        stored = store_images(source, data, preprocessing, folder, signatures)
        split_N, warnings = assign_splits(
            stored.keys_N16,
            stored.labels_N,
            source.classes,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction,
            named_test_N=stored.named_test_N,
            group_keys_N16=stored.group_keys_N16,
        )
        for example in stored.group_check.examples():
            log.info("ingest: group %s", example)
        _check_training(source, stored, split_N)
        np.save(folder / "labels.npy", stored.labels_N)
        np.save(folder / "keys.npy", stored.keys_N16)
        np.save(folder / "split.npy", split_N)
        if stored.group_keys_N16 is not None:
            np.save(folder / GROUPS, stored.groups_N)
        write_json(folder / "classes.json", list(source.classes))
        write_json(folder / PREPROCESSING_FILE, asdict(preprocessing))
        near = _near_duplicates(folder, signatures, split_N)
        record = _record(data, source, stored, split_N, warnings, near, folder)
        write_record(folder, record)
    return record


def _near_duplicates(folder: Path, signatures: IO[bytes], split_N: NDArray[np.uint8]) -> NearDuplicates:
    """Return how many held-out images almost equal a training image, and the first pairs by name."""
    held_out = np.flatnonzero((split_N == VALIDATION) | (split_N == TEST))
    matches = near_duplicates.find_near_duplicates(signatures, held_out, np.flatnonzero(split_N == TRAIN))
    positions_shown = {position for pair in matches.pairs[:SHOWN_ALIKE] for position in pair}
    with (folder / "files.txt").open(encoding="utf-8") as names:
        name_of = {position: json.loads(line) for position, line in enumerate(names) if position in positions_shown}
    positions = list(matches.pairs[:SHOWN_ALIKE])
    pairs = [(name_of[held_out], name_of[training]) for held_out, training in positions]
    return NearDuplicates(looked_at=matches.checked, found=len(matches.pairs), pairs=pairs, positions=positions)


def _check_training(source: Source, stored: StoredImages, split_N: NDArray[np.uint8]) -> None:
    train = np.bincount(stored.labels_N[(split_N == TRAIN) & (stored.labels_N >= 0)], minlength=len(source.classes))
    if empty_classes := [name for name, count in zip(source.classes, train, strict=True) if count == 0]:
        raise DataError(
            f"no training image is left for {class_names(empty_classes)}: all of theirs are unusable, in the "
            "validation or test split, or equal to test images; add images to these classes or remove their folders"
        )


def _record(
    data: Data,
    source: Source,
    stored: StoredImages,
    split_N: NDArray[np.uint8],
    warnings: tuple[str, ...],
    near: NearDuplicates,
    folder: Path,
) -> IngestRecord:
    labelled_N, count = stored.labels_N >= 0, len(source.classes)
    table = np.stack(
        [np.bincount(stored.labels_N[labelled_N & (split_N == s)], minlength=count) for s in range(len(SPLITS))]
    )
    budget = table[TRAIN] if data.label_budget is None else np.minimum(table[TRAIN], data.label_budget)
    metrics = {f"data/{name}": float((split_N == split).sum()) for split, name in enumerate(SPLITS)} | {
        "data/images": float((split_N != LEFT_OUT).sum()),
        "data/unlabelled": float((~labelled_N & (split_N != LEFT_OUT)).sum()),
        "data/left_out": float((split_N == LEFT_OUT).sum()),
        "data/rejected": float(len(stored.rejected)),
        "data/labelled_train": float(table[TRAIN].sum()),
        "data/labelled_validation": float(table[VALIDATION].sum()),
        "data/label_budget": float(budget.sum()),
    }
    group_keys = stored.group_keys_N16
    details = IngestDetails(
        source=source.title,
        classes=list(source.classes),
        per_class={
            name: SplitCounts(**dict(zip(SPLITS, row, strict=True)))
            for name, row in zip(source.classes, table.T.tolist(), strict=True)
        },
        labels_per_class=data.label_budget,
        test_set="named by the source" if stored.named_test_N.any() else "by hash",
        resize_policy=stored.preprocessing.policy,
        resize=stored.preprocessing.resize,
        bits=stored.preprocessing.bits,
        training_size=stored.training_size,
        decoder=decoder_digest(reads_heic=stored.heic > 0),
        groups=None if group_keys is None else len(np.unique(number_equal_keys(group_keys))),
        groups_by_split=None if group_keys is None else _groups_by_split(stored, split_N),
        ignored_files=source.ignored,
        rejected=stored.rejected,
        near_duplicates=near,
    )
    settings = data.model_dump(mode="json") | {
        key: Path(path).name if Path(path).is_absolute() else path
        for key, path in (("path", data.path), ("labels", data.labels))
    }
    return IngestRecord(
        step="ingest",
        name="ingest",
        parameters=settings,
        inputs={"archive": sha256_of(Path(data.path))} if data.source == "sample" else {},
        metrics=metrics,
        details=details,
        warnings=(
            *source.warnings,
            *warnings,
            *data_warnings(data, source, stored, split_N, table),
            *near_duplicate_warnings(near, data.group_by),
        ),
        artifacts=describe_files(
            folder, *FILES, *(name for name in (GROUPS, TRAINING_FILE) if (folder / name).is_file())
        ),
    )


def _groups_by_split(stored: StoredImages, split_N: NDArray[np.uint8]) -> SplitCounts:
    """Return the number of groups in each split."""
    counts = {name: len(np.unique(stored.groups_N[split_N == split])) for split, name in enumerate(SPLITS)}
    return SplitCounts(**counts)
