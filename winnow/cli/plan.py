"""`winnow plan`: forecast which steps run, how long they take on this machine, and how much memory and disk they need.

The forecast is stored in .winnow/plan.json with the digest of params.yaml. A run of the same parameters prints it
beside what each step took.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.table import Table

from tasks.forecast.data_counts import Counts, Forecast, count_images
from tasks.project import run_lock
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import PLAN, SavedPlan
from tasks.versioning import dvc_stages, integrity
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.errors import WinnowError
from winnow.eta import format_duration
from winnow.hardware import memory_bytes
from winnow.records import sha256_of

console = Terminal()
PER_STEP, PER_RUN = 1.8, 10.0
"""Overhead of DVC, Prefect and MLflow per step and per run, in units of `dvc status` (benchmarks/results/overhead.md).
"""
LONG_STATUS = 4.0
"""Seconds above which `dvc status` has hashed files that it did not know before."""
FICLONE = 0x40049409
Row = dict[str, Any]


def print_plan(paths: ProjectPaths, config: Config) -> int:
    """Measure and print what `winnow run` would take, without starting a run."""
    with run_lock.lock_run(paths):
        stale, status_seconds = _stale_stages(paths, config)
        if not stale:
            console.print("Nothing has changed: no step would run.")
            return 0
        data = None if "ingest" in stale else paths.artifacts / "data"
        counts = count_images(config, data, paths.state_dir)
        console.print(f"To do: {len(stale)} steps. Each is measured on a small sample, which takes a minute or two.")
        forecasts = []
        for forecast in _forecasts(paths, config, counts, list(stale)):
            forecasts.append(replace(forecast, seconds=forecast.seconds + PER_STEP * status_seconds))
            console.print(f"  {forecast.step}: {format_duration(forecasts[-1].seconds)}", style="dim")
        overhead, kind = PER_RUN * status_seconds, link_type(paths)
        PLAN.write(paths, _plan_content(paths, forecasts, overhead, kind))
    _show(forecasts, counts, overhead, kind, paths)
    return 0


def _stale_stages(paths: ProjectPaths, config: Config) -> tuple[dict[str, list[str]], float]:
    """Return the stale stages, and the seconds that `dvc status` takes once it knows all files."""
    started = time.monotonic()
    stale = dvc_stages.stale_stages(paths.root, config)
    seconds = time.monotonic() - started
    if seconds > LONG_STATUS:
        started = time.monotonic()
        dvc_stages.stale_stages(paths.root, config)
        seconds = time.monotonic() - started
    return stale, seconds


def compare_with_plan(paths: ProjectPaths, times: dict[str, dict[str, float]]) -> tuple[dict[str, Row], str]:
    """Return the forecasts of the steps that ran, and one line on their error; empty without a fitting plan.

    `times`: step -> measured {seconds, memory_mb, disk_mb}.
    """
    saved = PLAN.read(paths)
    if (
        saved is None
        or saved["params"] != sha256_of(paths.root / "params.yaml")
        or not set(saved["steps"]) >= set(times)
    ):
        return {}, ""
    planned: dict[str, Row] = {step: dict(saved["steps"][step]) for step in times}
    return planned, _compare(planned, times)


def _compare(planned: dict[str, Row], times: dict[str, dict[str, float]]) -> str:
    def totals(key: str, total: Callable[[Iterable[float]], float]) -> tuple[float, float]:
        return total(row[key] for row in planned.values()), total(row[key] for row in times.values())

    seconds, disk, memory = totals("seconds", sum), totals("disk_mb", sum), totals("memory_mb", max)
    return (
        f"Planned: {format_duration(seconds[0])}, it took {format_duration(seconds[1])} ({_relative_error(*seconds)}); "
        f"{disk[0] / 1e3:.2f} GB of artifacts, {disk[1] / 1e3:.2f} GB ({_relative_error(*disk)}); "
        f"memory {memory[0] / 1e3:.2f} GB, {memory[1] / 1e3:.2f} GB ({_relative_error(*memory)})"
    )


def _relative_error(planned: float, actual: float) -> str:
    """Return the forecast's error relative to the measured value."""
    return f"forecast {(planned / actual - 1) * 100:+.0f} %" if actual else "-"


def _forecasts(paths: ProjectPaths, config: Config, counts: Counts, stages: list[str]) -> Iterator[Forecast]:
    """Yield forecasts from the child process as they come. Raises WinnowError where a step rejects its settings."""
    steps = [stage.removeprefix(dvc_stages.CANDIDATE_PREFIX) for stage in stages]
    stderr_lines: list[str] = []
    command = [sys.executable, "-m", "tasks.forecast", str(paths.root / "params.yaml"), json.dumps(asdict(counts))]
    with (
        tempfile.TemporaryDirectory(dir=paths.state_dir) as folder,
        subprocess.Popen(
            [*command, str(paths.state_dir), folder, str(paths.weights), *steps],
            cwd=paths.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        stderr_reader = threading.Thread(target=lambda: stderr_lines.extend(child.stderr or ()), daemon=True)
        stderr_reader.start()
        try:
            for line in child.stdout:
                if line.startswith('{"error"'):
                    raise WinnowError(json.loads(line)["error"])
                if line.startswith('{"step"'):
                    yield Forecast(**json.loads(line))
        except BaseException:
            child.terminate()
            raise
        stderr_reader.join()
    if child.returncode != 0:
        raise WinnowError(f"the steps could not be measured on a sample:\n{''.join(stderr_lines[-8:]).strip()}")


def _plan_content(paths: ProjectPaths, forecasts: list[Forecast], overhead: float, kind: str) -> SavedPlan:
    return {
        "params": sha256_of(paths.root / "params.yaml"),
        "total_seconds": sum(row.seconds for row in forecasts) + overhead,
        "disk_gb": _on_disk_gb(forecasts, kind),
        "steps": {
            row.step: {"seconds": row.seconds, "memory_mb": row.memory_mb, "disk_mb": row.disk_mb} for row in forecasts
        },
    }


def _on_disk_gb(forecasts: list[Forecast], kind: str) -> float:
    """Return GB in artifacts/ and DVC's cache, which share their files where DVC links instead of copying."""
    return sum(row.disk_mb for row in forecasts) * (1 if kind else 2) / 1e3


def _show(forecasts: list[Forecast], counts: Counts, overhead: float, kind: str, paths: ProjectPaths) -> None:
    title = f"About {counts.images:,} images: {counts.train:,} for training, {counts.budget:,} labels"
    table = Table("step", title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("time", "memory, GB", "disk, GB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it does")
    for forecast in forecasts:
        sizes = (f"{forecast.memory_mb / 1e3:.1f}", f"{forecast.disk_mb / 1e3:.2f}")
        table.add_row(forecast.step, format_duration(forecast.seconds), *sizes, forecast.basis)
    seconds, disk_mb = sum(row.seconds for row in forecasts) + overhead, sum(row.disk_mb for row in forecasts)
    memory_mb = max(row.memory_mb for row in forecasts)
    table.add_row("flow, tracking and servers", format_duration(overhead), "", "", "")
    table.add_row("total", format_duration(seconds), f"{memory_mb / 1e3:.1f}", f"{disk_mb / 1e3:.2f}", "", style="bold")
    console.print(table)
    needed = _on_disk_gb(forecasts, kind)
    storage = f"artifacts/ and DVC's cache share them ({kind})" if kind else "twice, in artifacts/ and in DVC's cache"
    free_disk, memory = shutil.disk_usage(paths.root).free / 1e9, memory_bytes()
    available = min(psutil.virtual_memory().available, memory)
    console.print(f"Disk: {needed:.1f} GB, {storage}; {free_disk:.0f} GB are free.")
    if needed > free_disk:
        console.print("That is more than is free.", style="bold red")
    if memory_mb * 1e6 > available:
        free_memory = f"{available / 1e9:.1f} of {memory / 1e9:.1f} GB"
        console.print(f"Memory: {memory_mb / 1e3:.1f} GB, more than the {free_memory} that are free.", style="bold red")
    console.print(
        f"Done about {datetime.now().astimezone() + timedelta(seconds=seconds):%Y-%m-%d %H:%M} if started now."
    )


def link_type(paths: ProjectPaths) -> str:
    """Return how DVC's cache shares files with artifacts/: reflink, hardlink or symlink; empty where it copies them."""
    cache, kinds = integrity.read_cache_settings(paths.root)
    if not cache.parent.is_dir():
        return ""
    with (
        tempfile.TemporaryDirectory(dir=paths.state_dir) as folder,
        tempfile.TemporaryDirectory(dir=cache.parent) as cache_folder,  # the cache itself may have to be made first
    ):
        source, target = Path(folder, "a"), Path(cache_folder, "b")
        source.write_bytes(b"winnow")
        for kind in kinds:
            with contextlib.suppress(OSError):
                if kind == "copy":
                    return ""
                if kind == "reflink":
                    with source.open("rb") as source_file, target.open("wb") as target_file:
                        fcntl.ioctl(target_file.fileno(), FICLONE, source_file.fileno())
                elif kind == "hardlink":
                    target.unlink(missing_ok=True)
                    target.hardlink_to(source)
                return kind
    return ""
