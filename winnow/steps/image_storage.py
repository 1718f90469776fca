"""Write decoded images as they come, so that memory does not grow with their number."""

from __future__ import annotations

import io
import json
import logging
import time
from array import array
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from winnow.config import Data
from winnow.data import near_duplicates
from winnow.data.dataset import TRAINING_FILE, number_equal_keys
from winnow.data.decoding import DecodedItems, decode_all
from winnow.data.group_key_check import GroupCheck
from winnow.data.groups import group_key
from winnow.data.preprocessing import Preprocessing
from winnow.data.sources import Source
from winnow.data.splits import merge_groups
from winnow.errors import DataError
from winnow.eta import ProgressTimer
from winnow.records.ingest import RejectedFile

log = logging.getLogger(__name__)

SHOWN_REJECTED = 10
SECONDS_BETWEEN_LINES = 4.0
MUCH_CROPPED = 0.35
"""Share of the long side that the centre crop discards, from which on it counts as much; 3:2 photographs lose a third.
"""


@dataclass(frozen=True)
class StoredImages:
    """The images that were written, with their labels, keys and counts."""

    labels_N: NDArray[np.int64]
    keys_N16: NDArray[np.uint8]
    named_test_N: NDArray[np.bool_]
    rejected: list[RejectedFile]
    group_keys_N16: NDArray[np.uint8] | None
    """Digests of the keys by data.group_by; where an image has none, its own key. None: no grouping."""
    training_size: int | None
    """Side in pixels of the squares kept for training crops; None: the images are too small, or none are configured."""
    large_enough: int
    """Images whose short side is at least the configured size."""
    preprocessing: Preprocessing
    much_cut: int
    """Images whose centre crop discards more than MUCH_CROPPED of the long side."""
    clipped: int
    """Images with gray values above the range."""
    heic: int
    """Images in HEIC."""
    group_check: GroupCheck

    @cached_property
    def groups_N(self) -> NDArray[np.int64]:
        """Return numbers that are equal for images that belong together: of one group, or equal in every pixel."""
        twins_N = number_equal_keys(self.keys_N16)
        return twins_N if self.group_keys_N16 is None else merge_groups(number_equal_keys(self.group_keys_N16), twins_N)


def store_images(
    source: Source, data: Data, preprocessing: Preprocessing, folder: Path, signatures: IO[bytes]
) -> StoredImages:
    """Write pixels and names as the images are decoded, and return what the record needs."""
    larger, large_enough, much_cut, clipped, heic = data.larger_size, 0, 0, 0, 0
    group_check = GroupCheck(data.group_by, source.classes)
    labels, is_named_test, keys, groups = array("q"), bytearray(), bytearray(), bytearray()
    rejected = [RejectedFile(file=name, reason=reason) for name, reason in source.missing]
    with (
        _Squares(folder / "images.npy", data.image_size) as pixels,
        nullcontext() if larger is None else _Squares(folder / TRAINING_FILE, larger) as for_crops,
        (folder / "files.txt").open("w", encoding="utf-8") as names,
        closing(decode_all(source.items(), source.count, data.image_size, larger, preprocessing)) as stream,
    ):
        for decoded in _logged(stream, source.count):
            pixels.append(decoded.pixels_KHWC)
            if for_crops is not None:
                for_crops.append(decoded.training_KHWC)
                large_enough += int((decoded.sides_K2[:, 0] >= for_crops.side).sum())
            much_cut += int((decoded.sides_K2[:, 0] < (1 - MUCH_CROPPED) * decoded.sides_K2[:, 1]).sum())
            clipped += decoded.clipped
            heic += decoded.heic
            signatures.write(near_duplicates.compute_signatures(decoded.pixels_KHWC).data)
            keys += decoded.keys_K16.tobytes()
            for key, item in zip(
                decoded.keys_K16, (decoded.items[position] for position in decoded.usable), strict=True
            ):
                if data.group_by != "none":
                    groups += group_key(item.group) if item.group else key.tobytes()
                    group_check.add(item)
                labels.append(item.label)
                is_named_test.append(item.is_test)
                names.write(json.dumps(item.name) + "\n")
            rejected += [
                RejectedFile(file=decoded.items[at].name, reason=reason) for at, reason in decoded.reasons.items()
            ]
            if len(rejected) > max(data.max_rejected, SHOWN_REJECTED - 1):
                break
    first_rejected = "".join(f"\n  {row.file}: {row.reason}" for row in rejected[:SHOWN_REJECTED])
    if not labels:
        raise DataError(f"{data.path}: no file can be used; repair or replace them. The first:{first_rejected}")
    if len(rejected) > data.max_rejected:
        raise DataError(
            f"{data.path}: {len(rejected)} or more files cannot be used, data.max_rejected allows {data.max_rejected}; "
            f"repair or remove them, or raise data.max_rejected. The first:{first_rejected}"
        )
    if data.training_size == "auto" and large_enough < len(labels) / 2:
        (folder / TRAINING_FILE).unlink()
        larger = None
    return StoredImages(
        np.array(labels, dtype=np.int64),
        np.frombuffer(bytes(keys), dtype=np.uint8).reshape(-1, 16),
        np.frombuffer(bytes(is_named_test), dtype=np.bool_),
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
    """A uint8 array (N, S, S, 3) in a .npy file, written as its rows come; its header is written last."""

    def __init__(self, path: Path, side: int) -> None:
        self.side, self._count = side, 0
        self._file = path.open("wb")
        self._file.write(_header(0, side))

    def append(self, pixels_KHWC: NDArray[np.uint8]) -> None:
        """Append rows."""
        self._file.write(pixels_KHWC.data)
        self._count += len(pixels_KHWC)

    def __enter__(self) -> _Squares:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._file.write(_header(self._count, self.side))


def _header(count: int, side: int) -> bytes:
    """Return the header of a .npy file. numpy pads it for larger counts, so its length does not depend on `count`."""
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


def _logged(stream: Iterator[DecodedItems], count: int) -> Iterator[DecodedItems]:
    """Yield the same stream, logging a line every few seconds and one at the end."""
    started, timer, count_done = time.monotonic(), ProgressTimer(count, SECONDS_BETWEEN_LINES), 0
    for decoded in stream:
        yield decoded
        count_done += len(decoded.items)
        if timer.is_due():
            rate, left = timer.rate(count_done), timer.left(count_done)
            log.info("ingest: %d of %d files, %.0f/s, %s left", count_done, count, rate, left)
    log.info("ingest: %d files in %.1f s", count_done, time.monotonic() - started)
