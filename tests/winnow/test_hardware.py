"""Check the limits of containers with cgroup files in a folder; check_host.py has its own copy, which must agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.project.environment import thread_variables
from winnow import hardware
from winnow.deploy import check_host

CORES = hardware.cores(Path("/nowhere"), Path("/nowhere"))
MEMORY_BYTES = hardware.memory_bytes(Path("/nowhere"), Path("/nowhere"))
V2, V1 = "0::/a/b\n", "5:memory:/a/b\n4:cpu,cpuacct:/a/b\n1:name=systemd:/a\n0::/\n"
LAYOUTS: dict[str, tuple[str, dict[str, str], int, int]] = {
    "no groups": ("", {}, CORES, MEMORY_BYTES),
    "v2": (V2, {"a/b/cpu.max": "100000 100000", "a/b/memory.max": "1000000"}, 1, 1_000_000),
    "v2 without limits": (V2, {"a/b/cpu.max": "max 100000", "a/b/memory.max": "max"}, CORES, MEMORY_BYTES),
    "v2 half a core": (V2, {"a/b/cpu.max": "50000 100000"}, 1, MEMORY_BYTES),
    "v2 a core and a half": (V2, {"a/b/cpu.max": "150000 100000"}, 1, MEMORY_BYTES),
    "v2 more than there is": (V2, {"a/b/cpu.max": "99900000 1000", "a/b/memory.max": "9" * 18}, CORES, MEMORY_BYTES),
    "v2 tighter above": (
        V2,
        {
            "a/cpu.max": "100000 100000",
            "a/b/cpu.max": "400000 100000",
            "a/memory.max": "5000",
            "a/b/memory.max": "9000",
        },
        1,
        5000,
    ),
    "v2 tighter below": (V2, {"a/memory.max": "9000", "a/b/memory.max": "5000"}, CORES, 5000),
    "v2 path of the host": ("0::/docker/c0ffee\n", {"cpu.max": "100000 100000", "memory.max": "5000"}, 1, 5000),
    "v2 outside of the namespace": ("0::/../x\n", {"cpu.max": "100000 100000", "memory.max": "5000"}, 1, 5000),
    "v2 damaged": (V2, {"a/b/cpu.max": "what 100000", "a/b/memory.max": ""}, CORES, MEMORY_BYTES),
    "v1": (
        V1,
        {
            "cpu,cpuacct/a/b/cpu.cfs_quota_us": "100000",
            "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
            "memory/a/b/memory.limit_in_bytes": "5000",
        },
        1,
        5000,
    ),
    "v1 without limits": (
        V1,
        {
            "cpu/a/b/cpu.cfs_quota_us": "-1",
            "cpu/a/b/cpu.cfs_period_us": "100000",
            "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
        },
        CORES,
        MEMORY_BYTES,
    ),
    "v1 half a core, above": (
        V1,
        {
            "cpu/a/cpu.cfs_quota_us": "50000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "5000",
        },
        1,
        5000,
    ),
    "v1 of another group": (
        V1,
        {"cpu/c/cpu.cfs_quota_us": "50000", "cpu/c/cpu.cfs_period_us": "100000", "a/b/memory.limit_in_bytes.x": "1"},
        CORES,
        MEMORY_BYTES,
    ),
}


def write_cgroup_files(folder: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write the files and return the roots of /proc and of /sys/fs/cgroup."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    for path, text in [(proc / "self" / "cgroup", groups), *((cgroups / name, text) for name, text in files.items())]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return proc, cgroups


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("module", [hardware, check_host], ids=["winnow", "check_host"])
def test_container_limits_are_read(module: object, layout: str, tmp_path: Path) -> None:
    groups, files, cores, memory = LAYOUTS[layout]
    roots = write_cgroup_files(tmp_path, groups, files)
    assert module.cores(*roots) == cores  # type: ignore[attr-defined]
    assert module.memory_bytes(*roots) == memory  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [hardware, check_host], ids=["winnow", "check_host"])
def test_unreadable_limits_are_ignored(module: object, tmp_path: Path) -> None:
    proc, cgroups = write_cgroup_files(tmp_path, V2, {})
    (cgroups / "a" / "b" / "cpu.max").mkdir(parents=True)  # reading it fails, for root too
    (cgroups / "a" / "b" / "memory.max").mkdir()
    assert (module.cores(proc, cgroups), module.memory_bytes(proc, cgroups)) == (CORES, MEMORY_BYTES)  # type: ignore[attr-defined]


@pytest.mark.skipif(CORES < 2, reason="one core is as few as a quota can leave")
def test_thread_variables_are_set_only_under_a_quota(tmp_path: Path) -> None:
    with_quota = write_cgroup_files(tmp_path / "limited", V2, {"a/b/cpu.max": "50000 100000"})
    without_quota = write_cgroup_files(tmp_path / "free", V2, {"a/b/cpu.max": "max 100000"})
    assert (hardware.thread_limit(*with_quota), hardware.thread_limit(*without_quota)) == (1, 0)
    assert thread_variables(0) == {}
    assert thread_variables(1)["OMP_NUM_THREADS"] == "1"
