"""Step 1: images from anywhere become one array of pixels, split by content, whose version is DVC's hash of it.

Files are decoded on all cores and written as they come, so memory does not grow with their number: only labels, keys
and flags (26 bytes an image) are held. A file that cannot be used is set aside with its reason; many of them are an
error. The label budget hides nothing here: winnow.data.splits does, wherever labels are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from winnow.config import FEW_LABELS, Config, Data
from winnow.data import near_duplicates
from winnow.data.dataset import PREPROCESSING, SPLITS, TEST, TRAIN, TRAINING, VALIDATION, group_equal
from winnow.data.decoder_digest import decoder_digest
from winnow.data.decoding import Decoded, decode_all
from winnow.data.gray_range import preprocessing_of
from winnow.data.group_key_check import GroupCheck
from winnow.data.preprocessing import ALL_BITS, Preprocessing
from winnow.data.sources import Source, open_source
from winnow.data.splits import LEFT_OUT, assign_splits, joined
from winnow.errors import DataError
from winnow.eta import duration
from winnow.evaluation.intervals import least_worst_end
from winnow.records import StepRecord, describe, publish, sha256_of, write_json, write_record

log = logging.getLogger(__name__)

FILES = ("images.npy", "labels.npy", "split.npy", "keys.npy", "files.txt", "classes.json", PREPROCESSING)
GROUPS = "groups.npy"
SHOWN_REJECTED, SHOWN_ALIKE = 10, 100
SECONDS_BETWEEN_LINES = 4.0
MUCH_CUT = 0.35
"""Share of the long side that the centre crop leaves out; of photographs of 3:2 it is a third."""


@dataclass(frozen=True)
class Stored:
    """What is known of the images that were written."""

    labels_N: NDArray[np.int64]
    keys_N16: NDArray[np.uint8]
    named_test_N: NDArray[np.bool_]
    rejected: list[dict[str, str]]
    group_keys_N16: NDArray[np.uint8] | None
    """Digests of what data.group_by names; a copy of the image's own where it names nothing. None: not asked for."""
    training_size: int | None
    """Side in pixels of the squares kept for training crops; None: the images are too small, or none were wanted."""
    large_enough: int
    """Images whose short side is not below the size asked for."""
    preprocessing: Preprocessing
    much_cut: int
    """Images of which the centre crop leaves MUCH_CUT of the long side out."""
    clipped: int
    """Images with gray values above the range."""
    heic: int
    """Images in HEIC."""
    group_check: GroupCheck

    @cached_property
    def groups_N(self) -> NDArray[np.int64]:
        """Numbers that are equal for images that belong together: of one group, or equal in every pixel."""
        twins_N = group_equal(self.keys_N16)
        return twins_N if self.group_keys_N16 is None else joined(group_equal(self.group_keys_N16), twins_N)


def ingest(config: Config, out: Path, scratch: Path) -> StepRecord:
    """Read data.source, decode, split, and leave a stored data set (winnow.data.dataset) in `out`.

    Raises DataError when the images cannot serve as they are; `out` is then as it was.
    """
    data = config.data
    source = open_source(data, scratch)
    log.info("ingest: %d files, %d classes (%s)", source.count, len(source.classes), source.title)
    with publish(out) as folder, tempfile.TemporaryFile(dir=folder) as signatures:
        preprocessing = preprocessing_of(data, source)
        if preprocessing.bits != ALL_BITS:
            log.info("ingest: gray images of 16 bits: %d is white (data.bits)", 2**preprocessing.bits - 1)
        stored = store(source, data, preprocessing, folder, signatures)
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
        write_json(folder / PREPROCESSING, asdict(preprocessing))
        near = _near_duplicates(folder, signatures, split_N)
        record = _record(data, source, stored, split_N, warnings, near, folder)
        write_record(folder, record)
    return record


def store(source: Source, data: Data, preprocessing: Preprocessing, folder: Path, signatures: IO[bytes]) -> Stored:
    """Write pixels and names as they are decoded."""
    larger, large_enough, much_cut, clipped, heic = data.larger_size, 0, 0, 0, 0
    group_check = GroupCheck(data.group_by, source.classes)
    labels, named_test, keys, groups = array("q"), bytearray(), bytearray(), bytearray()
    rejected = [{"file": name, "reason": reason} for name, reason in source.missing]
    with (
        _Squares(folder / "images.npy", data.image_size) as pixels,
        nullcontext() if larger is None else _Squares(folder / TRAINING, larger) as for_crops,
        (folder / "files.txt").open("w", encoding="utf-8") as names,
        closing(decode_all(source.items(), source.count, data.image_size, larger, preprocessing)) as stream,
    ):
        for done in _logged(stream, source.count):
            pixels.append(done.pixels_KHWC)
            if for_crops is not None:
                for_crops.append(done.larger_KHWC)
                large_enough += int((done.sides_K2[:, 0] >= for_crops.side).sum())
            much_cut += int((done.sides_K2[:, 0] < (1 - MUCH_CUT) * done.sides_K2[:, 1]).sum())
            clipped += done.clipped
            heic += done.heic
            signatures.write(near_duplicates.signatures(done.pixels_KHWC).data)
            keys += done.keys_K16.tobytes()
            for key, item in zip(done.keys_K16, (done.items[position] for position in done.kept), strict=True):
                if data.group_by != "none":
                    groups += _digest(item.group) if item.group else key.tobytes()
                    group_check.add(item)
                labels.append(item.label)
                named_test.append(item.is_test)
                names.write(json.dumps(item.name) + "\n")
            rejected += [{"file": done.items[at].name, "reason": reason} for at, reason in done.reasons.items()]
            if len(rejected) > max(data.max_rejected, SHOWN_REJECTED - 1):
                break
    listed = "".join(f"\n  {row['file']}: {row['reason']}" for row in rejected[:SHOWN_REJECTED])
    if not labels:
        raise DataError(f"{data.path}: no file can be used; repair or replace them. The first:{listed}")
    if len(rejected) > data.max_rejected:
        raise DataError(
            f"{data.path}: {len(rejected)} or more files cannot be used, data.max_rejected allows {data.max_rejected}; "
            f"repair or remove them, or raise data.max_rejected. The first:{listed}"
        )
    if data.training_size == "auto" and large_enough < len(labels) / 2:
        (folder / TRAINING).unlink()
        larger = None
    return Stored(
        np.array(labels, dtype=np.int64),
        np.frombuffer(bytes(keys), dtype=np.uint8).reshape(-1, 16),
        np.frombuffer(bytes(named_test), dtype=np.bool_),
        rejected,
        np.frombuffer(bytes(groups), dtype=np.uint8).reshape(-1, 16) if data.group_by != "none" else None,
        larger,
        large_enough,
        preprocessing,
        much_cut,
        clipped,
        heic,
        group_check,
    )


class _Squares:
    """An array uint8 (N, S, S, 3) in a .npy file that is written as its rows come; its header last."""

    def __init__(self, path: Path, side: int) -> None:
        self.side, self._count = side, 0
        self._file = path.open("wb")
        self._file.write(_header(0, side))

    def append(self, pixels_KHWC: NDArray[np.uint8]) -> None:
        """Write so many rows more."""
        self._file.write(pixels_KHWC.data)
        self._count += len(pixels_KHWC)

    def __enter__(self) -> _Squares:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(_header(self._count, self.side))


def _digest(group: str) -> bytes:
    return hashlib.blake2b(group.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _near_duplicates(folder: Path, signatures: IO[bytes], split_N: NDArray[np.uint8]) -> dict[str, Any]:
    """How many held-out images almost equal a training image, and the first pairs by name."""
    held_out = np.flatnonzero((split_N == VALIDATION) | (split_N == TEST))
    found = near_duplicates.find(signatures, held_out, np.flatnonzero(split_N == TRAIN))
    wanted = {position for pair in found.pairs[:SHOWN_ALIKE] for position in pair}
    with (folder / "files.txt").open(encoding="utf-8") as names:
        named = {position: json.loads(line) for position, line in enumerate(names) if position in wanted}
    pairs = [[named[one], named[other]] for one, other in found.pairs[:SHOWN_ALIKE]]
    positions = [list(pair) for pair in found.pairs[:SHOWN_ALIKE]]
    return {"looked_at": found.looked_at, "found": len(found.pairs), "pairs": pairs, "positions": positions}


def _alike(near: dict[str, Any], group_by: str) -> list[str]:
    if not near["found"]:
        return []
    one, other = near["pairs"][0]
    told = (
        f"{near['found']} of {near['looked_at']} held-out images almost equal a training image, as {one} does {other}; "
        "the report shows the first. Figures flatter a little"
    )
    if group_by == "none":
        return [f"{told}; where names tell which belong together, data.group_by keeps them so"]
    return [f"{told}: these are of different groups of data.group_by, such as one object photographed twice"]


def _header(count: int, side: int) -> bytes:
    """Header of a .npy file. numpy leaves room for larger counts, so its length does not depend on `count`."""
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


def _logged(stream: Iterator[Decoded], count: int) -> Iterator[Decoded]:
    """The same stream, with a line every few seconds and one at the end."""
    started = said = time.monotonic()
    done = 0
    for decoded in stream:
        yield decoded
        done += len(decoded.items)
        now = time.monotonic()
        rate = done / max(now - started, 1e-9)
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            left = duration(max(0, count - done) / rate)
            log.info("ingest: %d of %d files, %.0f/s, %s left", done, count, rate, left)
    log.info("ingest: %d files in %.1f s", done, time.monotonic() - started)


def _check_training(source: Source, stored: Stored, split_N: NDArray[np.uint8]) -> None:
    train = np.bincount(stored.labels_N[(split_N == TRAIN) & (stored.labels_N >= 0)], minlength=len(source.classes))
    if bare := [name for name, count in zip(source.classes, train, strict=True) if count == 0]:
        raise DataError(
            f"no image is left to train on for {_named(bare)}: all of theirs are unusable, in the validation or test "
            "split, or equal to test images; add images to these classes or take their folders away"
        )


def _record(
    data: Data,
    source: Source,
    stored: Stored,
    split_N: NDArray[np.uint8],
    warnings: tuple[str, ...],
    near: dict[str, Any],
    folder: Path,
) -> StepRecord:
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
    details: dict[str, Any] = {
        "source": source.title,
        "classes": list(source.classes),
        "per_class": {
            name: dict(zip(SPLITS, row, strict=True))
            for name, row in zip(source.classes, table.T.tolist(), strict=True)
        },
        "labels_per_class": data.label_budget,
        "test_set": "named by the source" if stored.named_test_N.any() else "by hash",
        "resize_policy": stored.preprocessing.policy,
        **asdict(stored.preprocessing),
        "training_size": stored.training_size,
        "decoder": decoder_digest(reads_heic=stored.heic > 0),
        "groups": None if stored.group_keys_N16 is None else len(np.unique(group_equal(stored.group_keys_N16))),
        "groups_by_split": None if stored.group_keys_N16 is None else _groups_by_split(stored, split_N),
        "ignored_files": source.ignored,
        "rejected": stored.rejected,
        "near_duplicates": near,
    }
    settings = data.model_dump(mode="json") | {
        key: Path(path).name if Path(path).is_absolute() else path
        for key, path in (("path", data.path), ("labels", data.labels))
    }
    return StepRecord(
        step="ingest",
        name="ingest",
        parameters=settings,
        inputs={"archive": sha256_of(Path(data.path))} if data.source == "sample" else {},
        metrics=metrics,
        details=details,
        warnings=(
            *source.warnings,
            *warnings,
            *_warnings(data, source, stored, split_N, table),
            *_alike(near, data.group_by),
        ),
        artifacts=describe(folder, *FILES, *(name for name in (GROUPS, TRAINING) if (folder / name).is_file())),
    )


def _warnings(
    data: Data, source: Source, stored: Stored, split_N: NDArray[np.uint8], table_SC: NDArray[np.int64]
) -> list[str]:
    """What a person should know before believing a figure made from these images."""
    found = []
    if stored.rejected:
        first = stored.rejected[0]
        found.append(
            f"{len(stored.rejected)} files cannot be used and were set aside, the first: {first['file']} "
            f"({first['reason']}); all are listed in the record"
        )
    too_small = len(stored.labels_N) - stored.large_enough
    if stored.training_size is not None and too_small > len(stored.labels_N) / 2:
        found.append(
            f"{too_small} of {len(stored.labels_N)} images are smaller than data.training_size "
            f"({stored.training_size}): enlarging them costs time and shows nothing more; set it to auto"
        )
    found += _preprocessed(stored)
    found += _duplicates(stored, split_N)
    found += _groups(data, stored, split_N)
    budget = data.label_budget
    if budget and (short := [n for n, have in zip(source.classes, table_SC[TRAIN], strict=True) if have < budget]):
        found.append(f"{_named(short)} gives all its labels, fewer than the budget of {budget} per class")
    if missing := [name for name, have in zip(source.classes, table_SC[TEST], strict=True) if have == 0]:
        found.append(f"there is no test image of {_named(missing)}")
    if (have := int(table_SC[VALIDATION].sum())) < FEW_LABELS:
        groups_N = stored.groups_N[(split_N == VALIDATION) & (stored.labels_N >= 0)]
        where = "" if stored.group_keys_N16 is None else f" in {len(np.unique(groups_N))} groups"
        least = least_worst_end(have, groups_N=groups_N)
        found.append(
            f"only {have} labelled validation images{where}, fewer than {FEW_LABELS}: intervals are wide, and even a "
            f"file that changes no answer is only shown by labels to lose less than {least:.1f} points"
        )
    return found


def _preprocessed(stored: Stored) -> list[str]:
    """What resizing leaves out, and values above the range."""
    found, count = [], len(stored.labels_N)
    if stored.preprocessing.resize == "crop" and stored.much_cut > count / 2:
        found.append(
            f"the centre crop leaves out more than {MUCH_CUT:.0%} of the long side of {stored.much_cut} of {count} "
            "images; where what tells the classes apart lies near the ends, set data.resize to pad or stretch"
        )
    if stored.clipped:
        found.append(
            f"{stored.clipped} gray images hold values above {2**stored.preprocessing.bits - 1}, which become white; "
            f"set data.bits to more than {stored.preprocessing.bits}"
        )
    return found


def _groups_by_split(stored: Stored, split_N: NDArray[np.uint8]) -> dict[str, int]:
    """Return in how many groups the images of each split lie."""
    return {name: len(np.unique(stored.groups_N[split_N == split])) for split, name in enumerate(SPLITS)}


def _duplicates(stored: Stored, split_N: NDArray[np.uint8]) -> list[str]:
    used = split_N != LEFT_OUT
    groups, labels = group_equal(stored.keys_N16)[used], stored.labels_N[used]
    found = []
    if copies := len(groups) - len(np.unique(groups)):
        found.append(f"{copies} images are exact copies of others; copies share a split")
    named = np.unique(np.stack([groups, labels])[:, labels >= 0], axis=1)[0]
    if torn := len(named) - len(np.unique(named)):
        found.append(f"{torn} images occur under more than one class; at least one of their labels is wrong")
    return found


def _groups(data: Data, stored: Stored, split_N: NDArray[np.uint8]) -> list[str]:
    """Whether grouping leaves shares that are far from what was asked for, among images that a hash has placed."""
    if stored.group_keys_N16 is None:
        return []
    found = stored.group_check.warnings()
    sizes = np.bincount(group_equal(stored.group_keys_N16))
    share = float((split_N == VALIDATION)[~stored.named_test_N & (split_N != LEFT_OUT)].mean())
    told = f"data.group_by makes {len(sizes)} groups of {len(split_N)} images, the largest of {sizes.max()}"
    if len(sizes) == len(split_N):
        return [*found, f"{told}: no two images share one, see that it fits their paths"]
    if not 0.5 < share / data.validation_fraction < 2:
        among = "of those outside the test set that the source names " if stored.named_test_N.any() else ""
        found.append(f"{told}: {among}{share:.0%} are validation images, not {data.validation_fraction:.0%}")
    return found


def _named(names: list[str]) -> str:
    """Class names for a sentence."""
    shown = ", ".join(repr(name) for name in names[:SHOWN_REJECTED])
    rest = f" and {len(names) - SHOWN_REJECTED} more" if len(names) > SHOWN_REJECTED else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{rest}"
