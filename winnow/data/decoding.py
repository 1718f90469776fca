"""Decode files to pixels on all cores, in order, with a bounded number of files in flight.

Memory is bounded by the files in flight, not by their total number. winnow/data/decoder_process.py says how the
processes are started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from winnow.data.chunk_decoding import DecodedChunk, DecodeSettings, decode_chunk
from winnow.data.decoder_process import CRASH_REASON, DecoderProcess
from winnow.data.image_items import Item
from winnow.data.preprocessing import DEFAULT_PREPROCESSING, Preprocessing
from winnow.errors import DataError
from winnow.hardware import cores

CHUNK_BYTES = 4_000_000
MAX_CHUNK_IMAGES = 64
CHUNKS_PER_WORKER = 3
MAX_CONTENT_BYTES = 16_000_000
"""The bytes of file content that a chunk may carry, where files come from an archive."""
MIN_PARALLEL_IMAGES = 8
"""With fewer images than this the calling process decodes them itself; a file that hangs it is then not rejected."""
CHUNK_SECONDS, FILE_SECONDS = 120.0, 60.0
"""Time limits, after which a decoder counts as hanging."""
MAX_DEATHS = 3


@dataclass(frozen=True)
class DecodedItems(DecodedChunk):
    """The pixels of a chunk of items, in their order."""

    items: list[Item]


def decode_all(
    items: Iterable[Item],
    count: int,
    image_size: int,
    larger: int | None = None,
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING,
) -> Generator[DecodedItems, None, None]:
    """Decode `count` items in their order, each to one square or two. Close the generator to stop early.

    A file that crashes its decoder, or takes longer than FILE_SECONDS, is rejected like a damaged one. Raises DataError
    when one process after another dies.
    """
    sides = DecodeSettings(image_size, larger or 0, preprocessing)
    chunks = _chunks(iter(items), chunk_size(count, max(sides.image, sides.larger)))
    if count < MIN_PARALLEL_IMAGES:
        for chunk in chunks:
            yield DecodedItems(**vars(decode_chunk([item.content for item in chunk], sides)), items=chunk)
        return
    workers = [DecoderProcess(sides) for _ in range(cores())]
    try:
        in_flight: deque[tuple[list[Item], DecoderProcess]] = deque()
        idle = deque(workers)
        for chunk in chunks:
            worker = idle.popleft()
            worker.give([item.content for item in chunk])
            in_flight.append((chunk, worker))
            if not idle:
                oldest, worker = in_flight.popleft()
                yield _collect(oldest, worker, sides)
                idle.append(worker)
        while in_flight:
            yield _collect(*in_flight.popleft(), sides)
    finally:
        for worker in workers:
            worker.end()


def chunk_size(count: int, image_size: int) -> int:
    """Return the largest number of images that decode_all yields at once, for `count` images of this size in pixels."""
    per_worker = -(-count // (cores() * CHUNKS_PER_WORKER))
    return max(1, min(MAX_CHUNK_IMAGES, per_worker, CHUNK_BYTES // (image_size * image_size * 3)))


def _chunks(stream: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Yield chunks of at most `size` items, with no more content than MAX_CONTENT_BYTES beyond the first item."""
    chunk: list[Item] = []
    chunk_bytes = 0
    for item in stream:
        item_bytes = len(item.content) if isinstance(item.content, bytes) else 0
        if chunk and (len(chunk) == size or chunk_bytes + item_bytes > MAX_CONTENT_BYTES):
            yield chunk
            chunk, chunk_bytes = [], 0
        chunk.append(item)
        chunk_bytes += item_bytes
    if chunk:
        yield chunk


def _collect(chunk: list[Item], worker: DecoderProcess, sides: DecodeSettings) -> DecodedItems:
    """Return a worker's result for a chunk. Where the chunk fails, decode it file by file to isolate the fault."""
    result = worker.answer(CHUNK_SECONDS)
    if isinstance(result, str):
        result = _decode_one_by_one(chunk, worker, sides)
    return DecodedItems(**vars(result), items=chunk)


def _decode_one_by_one(chunk: list[Item], worker: DecoderProcess, sides: DecodeSettings) -> DecodedChunk:
    """Decode each file by itself. Raises DataError where all of more than MAX_DEATHS files crash the decoder."""
    parts, deaths = [], 0
    for item in chunk:
        worker.give([item.content])
        part = worker.answer(FILE_SECONDS)
        if isinstance(part, str):
            deaths += part.startswith(CRASH_REASON)
            part = decode_chunk([ValueError(part)], sides)
        parts.append(part)
    if deaths == len(chunk) > MAX_DEATHS:
        raise DataError(
            "one image decoding process after another died, most likely for lack of memory; free some, look for "
            "very large images, or run on fewer cores (taskset -c 0 winnow run)"
        )
    return DecodedChunk(
        [position for position, part in enumerate(parts) if part.usable],
        np.concatenate([part.pixels_KHWC for part in parts]),
        np.concatenate([part.keys_K16 for part in parts]),
        {position: part.reasons[0] for position, part in enumerate(parts) if part.reasons},
        np.concatenate([part.training_KHWC for part in parts]),
        np.concatenate([part.sides_K2 for part in parts]),
        sum(part.clipped for part in parts),
        sum(part.heic for part in parts),
    )
