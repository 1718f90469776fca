"""Find held-out images that almost equal a training image: re-encoded, slightly brightened, the next frame of a burst.

Two images are near-duplicates when their difference hashes (which of two neighbouring cells is brighter, in an 8 x 8
grid, across and down: 128 bits) differ in few bits and their 8 x 8 thumbnails in few gray levels. N. Krawetz, "Kind of
Like That", 2013, describes the hash. Hash and thumbnail together are an image's signature of SIGNATURE_BYTES bytes.
Signatures are read from a file, training images in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

CELLS = 8
BITS = 2 * CELLS * CELLS
SIGNATURE_BYTES = BITS // 8 + CELLS * CELLS
"""The size of a signature in bytes."""
MAX_BITS = 16
"""The most differing bits, of 128. Unrelated photographs differ in about half, by chance in 35; two objects of one
shape on one background in as few as 20. Measured on crops of coins, judged by eye: of the pairs within 16 bits and 12
levels 48 of 51 showed one coin twice; from 17 to 24 bits fewer than half did (docs/decisions/0030)."""
MAX_LEVELS = 12.0
"""The largest mean difference of the thumbnails' gray levels."""
MAX_HELD_OUT = 4_000
"""The most held-out images to check, evenly spread. Each is compared with all training images, so without a limit the
time per image would grow with the data set."""
CHUNK = 2048
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class NearDuplicates:
    """The near-duplicates among the held-out images."""

    checked: int
    """The number of held-out images that were checked."""
    pairs: tuple[tuple[int, int], ...]
    """(held-out image, most similar training image) as positions in the data set, the most similar pair first."""


def compute_signatures(images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the signatures of images of any size, uint8 (N, SIGNATURE_BYTES): the hash's bits, then the thumbnail."""
    gray_NHW = images_NHWC @ LUMA
    while gray_NHW.shape[1] < 2 * CELLS + 2:
        gray_NHW = gray_NHW.repeat(2, axis=1).repeat(2, axis=2)
    edges = np.linspace(0, gray_NHW.shape[1], CELLS + 2).astype(np.int64)
    sums_N99 = np.add.reduceat(np.add.reduceat(gray_NHW, edges[:-1], axis=1), edges[:-1], axis=2)
    sizes_9 = np.diff(edges).astype(np.float32)
    cells_N99 = sums_N99 / (sizes_9[:, None] * sizes_9[None])
    thumbs_N88 = cells_N99[:, :CELLS, :CELLS]
    across, down = cells_N99[:, :CELLS, 1:] > thumbs_N88, cells_N99[:, 1:, :CELLS] > thumbs_N88
    bits_NB = np.concatenate([across.reshape(-1, CELLS * CELLS), down.reshape(-1, CELLS * CELLS)], axis=1)
    thumbs_NC = thumbs_N88.reshape(-1, CELLS * CELLS).astype(np.uint8)
    return np.concatenate([np.packbits(bits_NB, axis=1), thumbs_NC], axis=1)


def find_near_duplicates(file: IO[bytes], held_out: NDArray[np.int64], training: NDArray[np.int64]) -> NearDuplicates:
    """Find near-duplicates of held-out images among training images; each held-out image is in one pair at most.

    `file` holds the signatures of all images in order; `held_out` and `training` are sorted positions.
    """
    if len(held_out) > MAX_HELD_OUT:
        held_out = held_out[np.linspace(0, len(held_out) - 1, MAX_HELD_OUT).astype(np.int64)]
    best_H = np.full(len(held_out), MAX_BITS + 1, dtype=np.int64)
    match_H = np.full(len(held_out), -1, dtype=np.int64)
    held_out_chunks = list(_read_chunks(file, held_out))
    for training_T, bits_TB, thumbs_TC in _read_chunks(file, training):
        offset = 0
        for held_out_H, bits_HB, thumbs_HC in held_out_chunks:
            count = len(held_out_H)
            differing_HT = (BITS - bits_HB @ bits_TB.T) / 2
            nearest_H = differing_HT.argmin(axis=1)
            bits_H = differing_HT[np.arange(count), nearest_H]
            levels_H = np.abs(thumbs_HC - thumbs_TC[nearest_H]).mean(axis=1)
            better = np.flatnonzero((bits_H < best_H[offset : offset + count]) & (levels_H <= MAX_LEVELS))
            best_H[offset + better], match_H[offset + better] = bits_H[better], training_T[nearest_H[better]]
            offset += count
    matched = np.flatnonzero(match_H >= 0)
    matched = matched[np.argsort(best_H[matched], kind="stable")]
    return NearDuplicates(len(held_out), tuple((int(held_out[index]), int(match_H[index])) for index in matched))


def _read_chunks(
    file: IO[bytes], positions: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]]:
    """Yield positions, bits as -1 and 1, and thumbnails of the images at `positions`, from CHUNK images at a time."""
    file.seek(0)
    first = 0
    while block := file.read(CHUNK * SIGNATURE_BYTES):
        rows = np.frombuffer(block, dtype=np.uint8).reshape(-1, SIGNATURE_BYTES)
        start, end = np.searchsorted(positions, (first, first + len(rows)))
        if start < end:
            signatures_N = rows[positions[start:end] - first]
            bits_NB = np.unpackbits(signatures_N[:, : BITS // 8], axis=1).astype(np.float32) * 2 - 1
            yield positions[start:end], bits_NB, signatures_N[:, BITS // 8 :].astype(np.float32)
        first += len(rows)
