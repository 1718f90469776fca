"""Held-out images that almost equal a training image: re-encoded, brightened a little, the next frame of a burst.

Two images are near-duplicates when their difference hashes (which of two neighbouring cells is brighter, in an 8 x 8
grid, across and down: 128 bits) differ in few bits and their 8 x 8 thumbnails by few levels. N. Krawetz, "Kind of Like
That", 2013, describes the hash. That, packed, is an image's signature: SIGNATURE bytes. Signatures
are read from a file, and training images stream by, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

CELLS = 8
BITS = 2 * CELLS * CELLS
SIGNATURE = BITS // 8 + CELLS * CELLS
"""Bytes."""
MAX_BITS = 16
"""Of 128; unrelated photographs differ in about half of them, by chance in 35, but two objects of one shape before one
background in as few as 20. Measured on crops of coins, looked at by eye: of the pairs within 16 bits and 12 levels 48
of 51 showed one coin twice; from 17 to 24 bits fewer than half did (docs/decisions/0030)."""
MAX_LEVELS = 12.0
"""Mean difference of the thumbnails' gray levels."""
MAX_HELD_OUT = 4_000
"""So many held-out images are looked at, evenly spread: each is compared with all training images, and with more of
them ingest would take longer for an image the more there are."""
CHUNK = 2048
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class NearDuplicates:
    """What was found among the held-out images that were looked at."""

    looked_at: int
    pairs: tuple[tuple[int, int], ...]
    """(held-out image, the training image that is most like it), positions in the data set; the most alike first."""


def signatures(images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Signatures of images of any size, uint8 (N, SIGNATURE): the hash's bits, then the thumbnail."""
    gray_NHW = images_NHWC @ LUMA
    while gray_NHW.shape[1] < 2 * CELLS + 2:
        gray_NHW = gray_NHW.repeat(2, axis=1).repeat(2, axis=2)
    edges = np.linspace(0, gray_NHW.shape[1], CELLS + 2).astype(np.int64)
    sums_N99 = np.add.reduceat(np.add.reduceat(gray_NHW, edges[:-1], axis=1), edges[:-1], axis=2)
    sizes_9 = np.diff(edges).astype(np.float32)
    cells_N99 = sums_N99 / (sizes_9[:, None] * sizes_9[None])
    here = cells_N99[:, :CELLS, :CELLS]
    across, down = cells_N99[:, :CELLS, 1:] > here, cells_N99[:, 1:, :CELLS] > here
    bits_NB = np.concatenate([across.reshape(-1, CELLS * CELLS), down.reshape(-1, CELLS * CELLS)], axis=1)
    return np.concatenate([np.packbits(bits_NB, axis=1), here.reshape(-1, CELLS * CELLS).astype(np.uint8)], axis=1)


def find(file: IO[bytes], held_out: NDArray[np.int64], training: NDArray[np.int64]) -> NearDuplicates:
    """Near-duplicates of the held-out images among the training images; each held-out image is in one pair at most.

    `file` holds the signatures of all images, one after the other; positions are sorted.
    """
    if len(held_out) > MAX_HELD_OUT:
        held_out = held_out[np.linspace(0, len(held_out) - 1, MAX_HELD_OUT).astype(np.int64)]
    best_H = np.full(len(held_out), MAX_BITS + 1, dtype=np.int64)
    match_H = np.full(len(held_out), -1, dtype=np.int64)
    looked_at = list(_chunks(file, held_out))
    for seen, bits_TB, thumbs_TC in _chunks(file, training):
        at = 0
        for held, bits_HB, thumbs_HC in looked_at:
            differing_HT = (BITS - bits_HB @ bits_TB.T) / 2
            nearest_H = differing_HT.argmin(axis=1)
            bits_H = differing_HT[np.arange(len(held)), nearest_H]
            levels_H = np.abs(thumbs_HC - thumbs_TC[nearest_H]).mean(axis=1)
            better = np.flatnonzero((bits_H < best_H[at : at + len(held)]) & (levels_H <= MAX_LEVELS))
            best_H[at + better], match_H[at + better] = bits_H[better], seen[nearest_H[better]]
            at += len(held)
    found = np.flatnonzero(match_H >= 0)
    found = found[np.argsort(best_H[found], kind="stable")]
    return NearDuplicates(len(held_out), tuple((int(held_out[at]), int(match_H[at])) for at in found))


def _chunks(
    file: IO[bytes], wanted: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]:
    """Positions, bits as -1 and 1, and thumbnails of the wanted images, CHUNK of them in the file at a time."""
    file.seek(0)
    at = 0
    while block := file.read(CHUNK * SIGNATURE):
        rows = np.frombuffer(block, dtype=np.uint8).reshape(-1, SIGNATURE)
        start, end = np.searchsorted(wanted, (at, at + len(rows)))
        at += len(rows)
        if start < end:
            chosen = rows[wanted[start:end] - (at - len(rows))]
            bits_NB = np.unpackbits(chosen[:, : BITS // 8], axis=1).astype(np.float32) * 2 - 1
            yield wanted[start:end], bits_NB, chosen[:, BITS // 8 :].astype(np.float32)
