"""Peak memory of a stretch of work, with the processes that it starts.

Pages of files, such as a memory map of all images, do not count: the system takes them back when memory is short.
Linux tells the two apart; elsewhere the resident memory of this process alone is taken.
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
class Peak:
    """High-water mark of this process and those below it, MB (1e6 bytes)."""

    mb: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def watched(every: float = 0.5) -> Iterator[Peak]:
    """Look at the memory so many seconds apart; what comes and goes in between is not seen."""
    peak = Peak()
    watcher = threading.Thread(target=_watch, args=(peak, every), daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        peak.ended.set()
        watcher.join()


def _watch(peak: Peak, every: float) -> None:
    own = psutil.Process().pid
    while True:
        ended = peak.ended.wait(every)
        peak.mb = max(peak.mb, sum(_memory_mb(pid) for pid in _family(own)))
        if ended:
            return


def _family(pid: int) -> Iterator[int]:
    """The process and all below it, as the system lists them; those that are gone meanwhile have none."""
    yield pid
    for listed in (PROCESSES / str(pid) / "task").glob("*/children"):
        try:
            children = listed.read_text(encoding="ascii").split()
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
    # A process that has ended and was not waited for has none.
    line = next((line for line in text.splitlines() if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(line.split()[1]) * 1024 / 1e6
