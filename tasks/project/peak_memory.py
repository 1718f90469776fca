"""Peak memory of a block of code, including its child processes.

Memory-mapped files, such as the images, do not count: the system frees their pages when memory is short. Only Linux
separates the two; elsewhere the resident memory of this process is used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PROCESSES = Path("/proc")


@dataclass
class PeakMemory:
    """The peak memory of this process and its children in MB (1e6 bytes)."""

    mb: float = 0.0


@contextmanager
def measure_peak_memory(every: float = 0.5) -> Iterator[PeakMemory]:
    """Measure the peak memory of the block by sampling every `every` seconds; shorter peaks are missed."""
    peak, ended = PeakMemory(), threading.Event()

    def watch() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(every)
            peak.mb = max(peak.mb, sum(_memory_mb(pid) for pid in _family(os.getpid())))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _family(pid: int) -> Iterator[int]:
    """Yield the ids of a process and its descendants."""
    yield pid
    for children_file in (PROCESSES / str(pid) / "task").glob("*/children"):
        try:
            children = children_file.read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


def _memory_mb(pid: int) -> float:
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return float(memory.rss - getattr(memory, "shared", 0)) / 1e6
