"""Read what this machine has: processor, flags that decide speed, cores, memory. Only the standard library is imported.

In a container the limits of its control group count, not what the host has. Cores are the processor time that the group
may use: `cpu.max` of cgroup v2, `cpu.cfs_quota_us` over `cpu.cfs_period_us` of v1. Memory is `memory.max` or
`memory.limit_in_bytes`. The groups above a process's own limit it too; the tightest limit counts. Groups are looked for
where every distribution mounts them. winnow/deploy/check_host.py has its own copy of these functions, since it imports
nothing of winnow. Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html,
scheduler/sched-bwc.html.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SPEED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
X86_FLAGS = frozenset({"avx2", "avx512f"})
"""Flags that only x86 processors have."""
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Flags of processors that sum products of int8 in 32 bits."""


def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction set flags; empty where the system does not list them (only Linux does)."""
    line = next((line for line in _cpuinfo().splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())


def cpu_name() -> str:
    """Return the processor's model name."""
    text = _cpuinfo()
    if not text:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cpuinfo() -> str:
    """Return Linux's description of the processors; empty elsewhere."""
    return _text(PROC / "cpuinfo")


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many cores this process may use: those of its affinity, or fewer where a control group's quota is
    lower.

    A quota is rounded down, to one core at least.
    """
    return min(_quotas(proc, cgroups))


def thread_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the number of threads to set in libraries; 0 where no quota is tighter than the affinity.

    Libraries respect the affinity themselves, but ignore quotas.
    """
    limit = cores(proc, cgroups)
    return limit if limit < _affinity() else 0


def memory_gb(proc: Path = PROC, cgroups: Path = CGROUPS) -> float:
    """Return the memory that this process may use, GB (1e9 bytes): the physical memory, or a control group's lower
    limit.
    """
    return round(memory_bytes(proc, cgroups) / 1e9, 1)


def memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the memory that this process may use, bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _group_folders(proc, cgroups, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [size for size in _numbers(folder / name)[:1] if size > 0]
    return min(limits)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(proc: Path, cgroups: Path) -> list[int]:
    """Return the affinity's number of cores, and the whole cores (one at least) of each control group with a quota."""
    core_counts = [_affinity()]
    for folder in _group_folders(proc, cgroups, "cpu"):
        quota = _numbers(folder / "cpu.max")
        quota = quota or _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:
            core_counts.append(max(1, quota[0] // quota[1]))
    return core_counts


def _group_folders(proc: Path, cgroups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all groups above it, in v2 and in v1's `controller`.

    A container may show a path of the host that does not exist inside it: there its own group is the topmost folder.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            mounts = [cgroups / name for name in dict.fromkeys((controllers, controller))]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of this process's namespace
            parts = []
        for mount in mounts:
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _numbers(path: Path) -> list[int]:
    """Return the whole numbers in a control file; none where it is missing, unreadable or unlimited (`max`)."""
    words = _text(path).split()
    return [int(word) for word in words] if all(word.lstrip("-").isdecimal() for word in words) else []


def _text(path: Path) -> str:
    """Return the text of a system file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def int8_sums_saturate(flags: Collection[str]) -> bool:
    """Return whether sums of int8 products overflow with these flags: x86 without VNNI sums them in 16 bits."""
    return not X86_FLAGS.isdisjoint(flags) and VNNI_FLAGS.isdisjoint(flags)


def has_fast_bf16() -> bool:
    """Return whether the processor multiplies bf16 in hardware; elsewhere it is emulated and slower than f32."""
    return bool(BF16_FLAGS & cpu_flags())
