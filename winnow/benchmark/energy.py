"""Energy of a piece of work, where the processor counts it and lets us read: RAPL, by Linux's powercap.

The counter is of the whole package: whatever else runs is counted, too. It wraps around; work should take a second at
least.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PACKAGES = Path("/sys/class/powercap")


def joules(act: Callable[[], object], packages: Path = PACKAGES) -> float | None:
    """What all packages used while `act` ran, or None where it cannot be read."""
    counters = sorted(packages.glob("intel-rapl:[0-9]*/energy_uj"))
    counters = [counter for counter in counters if counter.parent.name.count(":") == 1]
    before = [_read(counter) for counter in counters]
    if not counters or None in before:
        return None
    act()
    total = 0.0
    for counter, first in zip(counters, before, strict=True):
        last = _read(counter)
        if last is None or first is None:
            return None
        wrapped = last < first
        total += last - first + ((_read(counter.with_name("max_energy_range_uj")) or 0.0) if wrapped else 0.0)
    return total / 1e6


def _read(counter: Path) -> float | None:
    try:
        return float(counter.read_text())
    except (OSError, ValueError):
        return None
