"""Peak memory of a block of code, including its child processes.

Memory-mapped files, such as the images, do not count: the system frees their pages when memory is short. Only Linux
separates the two; elsewhere the resident memory of this process is used.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PROCESSES = Path("/proc")


@dataclass
class PeakMemory:
    """The peak memory of this process and its children in MB (1e6 bytes)."""

    mb: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def measure_peak_memory(every: float = 0.5) -> Iterator[PeakMemory]:
    """Measure the peak memory of the block by sampling every `every` seconds; shorter peaks are missed."""
    peak = PeakMemory()
    watcher = threading.Thread(target=_watch, args=(peak, every), daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        peak.ended.set()
        watcher.join()


def _watch(peak: PeakMemory, every: float) -> None:
    own = psutil.Process().pid
    while True:
        ended = peak.ended.wait(every)
        peak.mb = max(peak.mb, sum(_memory_mb(pid) for pid in _family(own)))
        if ended:
            return


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
        text = (PROCESSES / str(pid) / "status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0.0 if PROCESSES.is_dir() else psutil.Process(pid).memory_info().rss / 1e6
    except ProcessLookupError:
        return 0.0
    # A zombie process has no RssAnon line.
    line = next((line for line in text.splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(line.split()[1]) * 1024 / 1e6
