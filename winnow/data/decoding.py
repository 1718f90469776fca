"""Files to pixels on all cores, in order, with a bounded number of files under way.

Worker processes are spawned, not forked (torch and Prefect run threads that do not survive a fork), and import only
this file and what it imports: numpy and Pillow, not torch. Memory is bounded by the files under way, not by their
number.
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
from winnow.data.preprocessing import AS_SHIPPED, Preprocessing, resize
from winnow.errors import DataError
from winnow.hardware import cores

MAX_FILE_BYTES = 200_000_000
CHUNK_BYTES = 4_000_000
MAX_CHUNK = 64
CHUNKS_PER_WORKER = 3
MAX_CONTENT = 16_000_000
"""Bytes of files in a chunk, where they come with it from an archive."""
WORTH_A_PROCESS = 8
"""Images below which the calling process decodes them itself, and one that hangs is not set aside."""
CHUNK_SECONDS, FILE_SECONDS = 120.0, 60.0
"""What takes longer hangs."""
MAX_DEATHS = 3
DIES = "ends the process that decodes it"


Content = str | bytes | ValueError
"""A file's path, read where it is decoded; its bytes; or why there are none."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source."""

    name: str
    """Path inside the source, with /."""
    label: int
    """-1: none."""
    is_test: bool
    """Whether the source itself calls it a test image."""
    content: Content
    group: str = ""
    """What shares a split with others of the same name; "" stands alone."""


@dataclass(frozen=True)
class Result:
    """What was made of some files. K of them can be used."""

    kept: list[int]
    """Positions of the usable ones."""
    pixels_KHWC: NDArray[np.uint8]
    keys_K16: NDArray[np.uint8]
    reasons: dict[int, str]
    """Position -> what is wrong with a file."""
    larger_KHWC: NDArray[np.uint8]
    """The same squares at a second, larger size; (K, 0, 0, 3) where none was asked for."""
    sides_K2: NDArray[np.int64]
    """The short and the long side of the images as they were, pixels."""
    clipped: int
    """Images with gray values above the range of data.bits."""
    heic: int
    """Images in HEIC, which an extra package decodes."""


@dataclass(frozen=True)
class Decoded(Result):
    """What was made of some items, in their order."""

    items: list[Item]


@dataclass(frozen=True)
class Sides:
    """Sizes of the squares that are made of an image, pixels."""

    image: int
    larger: int = 0
    """A second one, beside the first; 0: none."""
    preprocessing: Preprocessing = AS_SHIPPED
    max_pixels: int = MAX_PIXELS
    """Of an image as it is; one of more is refused before it is decoded."""


def decode_all(
    items: Iterable[Item],
    count: int,
    image_size: int,
    larger: int | None = None,
    preprocessing: Preprocessing = AS_SHIPPED,
) -> Generator[Decoded, None, None]:
    """Decode `count` items, in their order, to one square each, or two. Close the generator to stop early.

    A file that kills the process that decodes it, or takes longer than FILE_SECONDS, is set aside like one that is
    damaged. Raises DataError when process after process dies.
    """
    sides = Sides(image_size, larger or 0, preprocessing)
    chunks = _chunks(iter(items), chunk_size(count, max(sides.image, sides.larger)))
    if count < WORTH_A_PROCESS:
        for chunk in chunks:
            yield Decoded(**vars(decode_chunk([item.content for item in chunk], sides)), items=chunk)
        return
    crew = [Decoder(sides) for _ in range(cores())]
    try:
        under_way: deque[tuple[list[Item], Decoder]] = deque()
        free = deque(crew)
        for chunk in chunks:
            worker = free.popleft()
            worker.give([item.content for item in chunk])
            under_way.append((chunk, worker))
            if not free:
                done, worker = under_way.popleft()
                yield _taken(done, worker, sides)
                free.append(worker)
        while under_way:
            yield _taken(*under_way.popleft(), sides)
    finally:
        for worker in crew:
            worker.end()


def chunk_size(count: int, image_size: int) -> int:
    """How many images, at most, decode_all gives at a time: of `count`, each `image_size` pixels wide and high."""
    fair = -(-count // (cores() * CHUNKS_PER_WORKER))
    return max(1, min(MAX_CHUNK, fair, CHUNK_BYTES // (image_size * image_size * 3)))


def _chunks(stream: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """At most `size` items each, and no more content than MAX_CONTENT beyond the first."""
    chunk: list[Item] = []
    held = 0
    for item in stream:
        content = len(item.content) if isinstance(item.content, bytes) else 0
        if chunk and (len(chunk) == size or held + content > MAX_CONTENT):
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += content
    if chunk:
        yield chunk


def _taken(chunk: list[Item], worker: Decoder, sides: Sides) -> Decoded:
    """A chunk that is under way; file by file where that goes wrong, so that one of them spoils no other."""
    result = worker.answer(CHUNK_SECONDS)
    if isinstance(result, str):
        parts, deaths = [], 0
        for item in chunk:
            worker.give([item.content])
            part = worker.answer(FILE_SECONDS)
            if isinstance(part, str):
                deaths += part.startswith(DIES)
                part = decode_chunk([ValueError(part)], sides)
            parts.append(part)
        if deaths == len(chunk) > MAX_DEATHS:
            raise DataError(
                "process after process that decodes images died, most likely for want of memory; "
                "free some, look for enormous images, or run on fewer cores (taskset -c 0 winnow run)"
            )
        result = Result(
            [position for position, part in enumerate(parts) if part.kept],
            np.concatenate([part.pixels_KHWC for part in parts]),
            np.concatenate([part.keys_K16 for part in parts]),
            {position: part.reasons[0] for position, part in enumerate(parts) if part.reasons},
            np.concatenate([part.larger_KHWC for part in parts]),
            np.concatenate([part.sides_K2 for part in parts]),
            sum(part.clipped for part in parts),
            sum(part.heic for part in parts),
        )
    return Decoded(**vars(result), items=chunk)


class Decoder:
    """A process that decodes, with one chunk under way at most; in place of one that ends, the next one stands.

    Not a ProcessPoolExecutor: it waits for ever for a worker that was killed half-way through its answer. Here each
    pipe has one writer, so its end is seen.
    """

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._sides), daemon=True)
        self._process.start()
        self._has_started = False
        theirs.close()

    def give(self, contents: list[Content]) -> None:
        """Begin with a chunk."""
        with suppress(OSError):  # a process that is gone is seen when it should answer
            self._pipe.send(contents)

    def answer(self, seconds: float) -> Result | str:
        """What came of the chunk, or why nothing did; another process is there then."""
        try:
            self._see_started()
            if self._pipe.poll(seconds):
                result: Result = self._pipe.recv()
                return result
            why = f"takes longer than {seconds:.0f} s to decode"
        except (EOFError, OSError):
            self._process.join(1)
            why = f"{DIES} (status {self._process.exitcode})"
        self.end()
        self._start()
        return why

    def _see_started(self) -> None:
        """Raise DataError where the process failed before it could be given anything: no file is to blame."""
        if not self._has_started:
            try:
                self._pipe.recv()
            except (EOFError, OSError) as error:
                self._process.join(1)
                if (self._process.exitcode or 0) <= 0:  # killed, not failed
                    raise
                raise DataError(
                    "a process that decodes images ends as it starts; a script that calls winnow has to be a file, and "
                    'to do so below if __name__ == "__main__":'
                ) from error
            self._has_started = True

    def end(self) -> None:
        """End the process, whatever it does."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _work(pipe: Connection, sides: Sides) -> None:
    """A worker: says that it is there; then chunks in, results out, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a whole group; whoever started this process ends it
    pipe.send("here")
    while True:
        try:
            pipe.send(decode_chunk(pipe.recv(), sides))
        except (EOFError, OSError):
            return


def decode_chunk(contents: list[Content], sides: Sides) -> Result:
    """What a worker does."""
    kept: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    larger: list[NDArray[np.uint8]] = []
    keys, reasons, short_and_long, clipped, heic = [], {}, [], 0, 0
    how = sides.preprocessing
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of odd files is said once, as their reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        for position, content in enumerate(contents):
            try:
                if isinstance(content, ValueError):
                    raise content
                data = content if isinstance(content, bytes) else read_file(content)
                opened = open_rgb(data, how.bits, sides.max_pixels)
            except ValueError as error:
                reasons[position] = str(error)
                continue
            kept.append(position)
            keys.append(opened.key)
            short_and_long.append(sorted(opened.rgb.size))
            clipped += opened.is_clipped
            heic += opened.is_heic
            pixels.append(resize(opened.rgb, sides.image, how.resize))
            if sides.larger:
                larger.append(resize(opened.rgb, sides.larger, how.resize))
    return Result(
        kept,
        _stacked(pixels, len(kept), sides.image),
        np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16),
        reasons,
        _stacked(larger, len(kept), sides.larger),
        np.array(short_and_long, dtype=np.int64).reshape(-1, 2),
        clipped,
        heic,
    )


def _stacked(pixels: list[NDArray[np.uint8]], count: int, side: int) -> NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.zeros((count, side, side, 3), dtype=np.uint8)


def read_file(path: str) -> bytes:
    """The bytes of an image file. Raises ValueError for what is no plain file, too large or unreadable."""
    try:
        about = Path(path).stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("no plain file")
        if about.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{about.st_size:,} bytes are more than {MAX_FILE_BYTES:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
