"""What this machine has: processor, flags that decide speed, cores, memory. Only the standard library is imported."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

SPEED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
WIDE_FLAGS = frozenset({"avx2", "avx512f"})
"""Only x86 processors have one of these."""
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Products of int8 are summed in 32 bits."""


def cpu_flags() -> frozenset[str]:
    """What the processor says it can do; empty where the system does not tell (only Linux does)."""
    line = next((line for line in _cpuinfo().splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())


def cpu_name() -> str:
    """The processor's own name."""
    text = _cpuinfo()
    if not text:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _cpuinfo() -> str:
    """What Linux tells of its processors; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """Physical memory, GB (1e9 bytes)."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def saturates(flags: Collection[str]) -> bool:
    """Whether sums of int8 products overflow on a processor with these flags: x86 without VNNI adds them in 16 bits."""
    return not WIDE_FLAGS.isdisjoint(flags) and VNNI_FLAGS.isdisjoint(flags)


def has_fast_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware; elsewhere it is emulated and slower than f32."""
    return bool(BF16_FLAGS & cpu_flags())
