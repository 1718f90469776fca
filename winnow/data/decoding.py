"""Files to pixels on all cores, in order, with a bounded number of files under way.

Worker processes are spawned, not forked (torch and Prefect run threads that do not survive a fork), and import only
this file and what it imports: numpy and Pillow, not torch. Memory is bounded by the files under way, not by their
number.
"""

from __future__ import annotations

import itertools
import multiprocessing
import stat
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from winnow.data.images import decode
from winnow.errors import DataError
from winnow.machine import cores

MAX_FILE_BYTES = 200_000_000
CHUNK_BYTES = 4_000_000
MAX_CHUNK = 64
CHUNKS_PER_WORKER = 3
WORTH_A_PROCESS = 64
"""Images below which starting processes takes longer than decoding."""


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


@dataclass(frozen=True, slots=True)
class Decoded:
    """Some items in order. `kept` are the positions of usable ones, `reasons` say what is wrong with the others."""

    items: list[Item]
    kept: list[int]
    pixels_KHWC: NDArray[np.uint8]
    keys_K16: NDArray[np.uint8]
    reasons: dict[int, str]


Result = tuple[list[int], NDArray[np.uint8], NDArray[np.uint8], dict[int, str]]


def decode_all(items: Iterable[Item], count: int, image_size: int) -> Generator[Decoded, None, None]:
    """Decode `count` items, in their order. Close the generator to stop early.

    Raises DataError when a worker process dies.
    """
    stream, processes = iter(items), cores()
    fair = -(-count // (processes * CHUNKS_PER_WORKER))
    size = max(1, min(MAX_CHUNK, fair, CHUNK_BYTES // (image_size * image_size * 3)))
    chunks = iter(lambda: list(itertools.islice(stream, size)), [])
    if processes == 1 or count < WORTH_A_PROCESS:
        for chunk in chunks:
            yield Decoded(chunk, *decode_chunk([item.content for item in chunk], image_size))
        return
    with _hired(processes, image_size) as crew:
        under_way: deque[tuple[list[Item], Connection]] = deque()
        free = deque(crew)
        for chunk in chunks:
            pipe = free.popleft()
            _told(pipe.send, [item.content for item in chunk])
            under_way.append((chunk, pipe))
            if not free:
                done, pipe = under_way.popleft()
                yield Decoded(done, *_told(pipe.recv))
                free.append(pipe)
        while under_way:
            done, pipe = under_way.popleft()
            yield Decoded(done, *_told(pipe.recv))


@contextmanager
def _hired(count: int, image_size: int) -> Iterator[list[Connection]]:
    """Pipes to worker processes, each of which has one chunk under way at most.

    Not a ProcessPoolExecutor: it waits for ever for a worker that was killed half-way through its answer. Here each
    pipe has one writer, so its end is seen.
    """
    context, crew, pipes = multiprocessing.get_context("spawn"), [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, image_size), daemon=True)
            worker.start()
            theirs.close()
            crew.append(worker)
            pipes.append(ours)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in crew:
            worker.terminate()
            worker.join()


def _work(pipe: Connection, image_size: int) -> None:
    """A worker: chunks in, results out, until the other end is closed."""
    while True:
        try:
            pipe.send(decode_chunk(pipe.recv(), image_size))
        except (EOFError, OSError):
            return


def _told(talk: Callable[..., Any], *what: Any) -> Any:
    """Send or receive. Raises DataError when the worker at the other end has died."""
    try:
        return talk(*what)
    except (EOFError, OSError) as error:
        raise DataError(
            "a process that decodes images died, most likely for want of memory; "
            "free some, look for enormous images, or run on fewer cores (taskset -c 0 winnow run)"
        ) from error


def decode_chunk(contents: list[Content], image_size: int) -> Result:
    """What a worker does: positions kept, their pixels (K, S, S, 3) and keys (K, 16), reasons for the others."""
    kept: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    keys, reasons = [], {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        for position, content in enumerate(contents):
            try:
                if isinstance(content, ValueError):
                    raise content
                pixels_HWC, key = decode(content if isinstance(content, bytes) else read_file(content), image_size)
            except ValueError as error:
                reasons[position] = str(error)
                continue
            kept.append(position)
            pixels.append(pixels_HWC)
            keys.append(key)
    shape = (len(kept), image_size, image_size, 3)
    pixels_KHWC = np.stack(pixels) if pixels else np.zeros(shape, dtype=np.uint8)
    return kept, pixels_KHWC, np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16), reasons


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
