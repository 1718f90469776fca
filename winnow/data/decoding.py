"""Decode files to pixels on all cores, in order, with a bounded number of files in flight.

Worker processes are spawned, not forked (torch and Prefect run threads that do not survive a fork), and import numpy
and Pillow, not torch. Memory is bounded by the files in flight, not by their total number.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import stat
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from winnow.data.dataset import open_rgb
from winnow.data.header_limits import MAX_PIXELS
from winnow.data.preprocessing import DEFAULT_PREPROCESSING, Preprocessing, resize
from winnow.errors import DataError
from winnow.hardware import cores

MAX_FILE_BYTES = 200_000_000
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
CRASH_REASON = "crashes the process that decodes it"


Content = str | bytes | ValueError
"""The path of a file, which the decoder reads; its bytes; or the reason why it has none."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source."""

    name: str
    """The path inside the source, with /."""
    label: int
    """The position of its class; -1 for no label."""
    is_test: bool
    """True where the source puts the image into its test set."""
    content: Content
    group: str = ""
    """The name of the group that shares a split; "" for none."""


@dataclass(frozen=True)
class DecodedChunk:
    """The pixels of a chunk of files, of which K can be used."""

    usable: list[int]
    """The positions of the K usable files."""
    pixels_KHWC: NDArray[np.uint8]
    keys_K16: NDArray[np.uint8]
    reasons: dict[int, str]
    """The reason why a file cannot be used, by its position."""
    training_KHWC: NDArray[np.uint8]
    """The same squares at a second, larger size; (K, 0, 0, 3) without one."""
    sides_K2: NDArray[np.int64]
    """The short and the long side of the original images in pixels."""
    clipped: int
    """The number of images with gray values above the range of data.bits."""
    heic: int
    """The number of HEIC images, which an extra package decodes."""


@dataclass(frozen=True)
class DecodedItems(DecodedChunk):
    """The pixels of a chunk of items, in their order."""

    items: list[Item]


@dataclass(frozen=True)
class DecodeSettings:
    """The settings of a decoder: the sizes of the squares in pixels, preprocessing and limits."""

    image: int
    larger: int = 0
    """The size of a second square; 0 for none."""
    preprocessing: Preprocessing = DEFAULT_PREPROCESSING
    max_pixels: int = MAX_PIXELS
    """The largest original image; a larger one is rejected before it is decoded."""


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


class DecoderProcess:
    """A decoding process with at most one chunk in flight; a process that ends is replaced by a new one.

    Not a ProcessPoolExecutor: that waits for ever for a worker which was killed while sending its result. Here each
    pipe has one writer, so a dead worker closes its pipe.
    """

    def __init__(self, sides: DecodeSettings) -> None:
        self._sides = sides
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, worker_pipe = context.Pipe()
        self._process = context.Process(target=_run_worker, args=(worker_pipe, self._sides), daemon=True)
        self._process.start()
        self._has_started = False
        worker_pipe.close()

    def give(self, contents: list[Content]) -> None:
        """Send a chunk to the process."""
        with suppress(OSError):  # `answer` reports a process that has died
            self._pipe.send(contents)

    def answer(self, seconds: float) -> DecodedChunk | str:
        """Return the chunk's result, or the reason why there is none; the process has then been replaced."""
        try:
            self._wait_until_started()
            if self._pipe.poll(seconds):
                result: DecodedChunk = self._pipe.recv()
                return result
            reason = f"takes longer than {seconds:.0f} s to decode"
        except (EOFError, OSError):
            self._process.join(1)
            reason = f"{CRASH_REASON} (status {self._process.exitcode})"
        self.end()
        self._start()
        return reason

    def _wait_until_started(self) -> None:
        """Wait for the process. Raises DataError where it failed before it received a file: no file is to blame."""
        if not self._has_started:
            try:
                self._pipe.recv()
            except (EOFError, OSError) as error:
                self._process.join(1)
                if (self._process.exitcode or 0) <= 0:  # killed, not failed
                    raise
                raise DataError(
                    "an image decoding process fails at start; a script that calls winnow must be a file, and "
                    'call it below if __name__ == "__main__":'
                ) from error
            self._has_started = True

    def end(self) -> None:
        """Kill the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _run_worker(pipe: Connection, sides: DecodeSettings) -> None:
    """Report readiness, then decode chunks from the pipe until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this one
    pipe.send("ready")
    while True:
        try:
            pipe.send(decode_chunk(pipe.recv(), sides))
        except (EOFError, OSError):
            return


def decode_chunk(contents: list[Content], sides: DecodeSettings) -> DecodedChunk:
    """Decode files in this process: read, check, convert and resize each."""
    usable: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    larger: list[NDArray[np.uint8]] = []
    keys, reasons, original_sides, clipped, heic = [], {}, [], 0, 0
    preprocessing = sides.preprocessing
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # the reason for a rejected file says it already
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
        for position, content in enumerate(contents):
            try:
                if isinstance(content, ValueError):
                    raise content
                data = content if isinstance(content, bytes) else read_file(content)
                image = open_rgb(data, preprocessing.bits, sides.max_pixels)
            except ValueError as error:
                reasons[position] = str(error)
                continue
            usable.append(position)
            keys.append(image.key)
            original_sides.append(sorted(image.rgb.size))
            clipped += image.is_clipped
            heic += image.is_heic
            pixels.append(resize(image.rgb, sides.image, preprocessing.resize))
            if sides.larger:
                larger.append(resize(image.rgb, sides.larger, preprocessing.resize))
    return DecodedChunk(
        usable,
        _stack(pixels, len(usable), sides.image),
        np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16),
        reasons,
        _stack(larger, len(usable), sides.larger),
        np.array(original_sides, dtype=np.int64).reshape(-1, 2),
        clipped,
        heic,
    )


def _stack(pixels: list[NDArray[np.uint8]], count: int, side: int) -> NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.zeros((count, side, side, 3), dtype=np.uint8)


def read_file(path: str) -> bytes:
    """Return the bytes of an image file. Raises ValueError where it is not a regular file, too large or unreadable."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{status.st_size:,} bytes are more than {MAX_FILE_BYTES:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
