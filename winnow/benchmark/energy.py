"""Energy of a function call, from the processor's RAPL counters in Linux's powercap, if they are readable.

The counters cover the whole processor package, so other processes count too. They wrap around and have a coarse
resolution: a call should take at least a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def measure_joules(call: Callable[[], object], packages: Path = POWERCAP) -> float | None:
    """Return the energy of all packages in joules while `call` runs; None if it cannot be read."""
    counters = sorted(packages.glob("intel-rapl:[0-9]*/energy_uj"))
    counters = [counter for counter in counters if counter.parent.name.count(":") == 1]
    before = [_read(counter) for counter in counters]
    if not counters or None in before:
        return None
    call()
    total = 0.0
    for counter, start in zip(counters, before, strict=True):
        end = _read(counter)
        if end is None or start is None:
            return None
        wrapped = end < start
        total += end - start + ((_read(counter.with_name("max_energy_range_uj")) or 0.0) if wrapped else 0.0)
    return total / 1e6


def _read(counter: Path) -> float | None:
    try:
        return float(counter.read_text())
    except (OSError, ValueError):
        return None
