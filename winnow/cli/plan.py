"""`winnow plan`: what will run, how long it will take on this machine, how much memory and disk; and how near that was.

The forecast is kept in .winnow/plan.json with the digest of params.yaml. A run of the same parameters prints it beside
what each step took.
"""

from __future__ import annotations

import configparser
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
from typing_extensions import TypedDict

from tasks.forecast.data_counts import Counts, Forecast, counts_of
from tasks.project import run_lock
from tasks.project.paths import ProjectPaths
from tasks.project.state_files import read_memory
from tasks.versioning import dvc_stages
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.errors import WinnowError
from winnow.eta import duration
from winnow.hardware import memory_bytes
from winnow.records import sha256_of, write_json

console = Terminal()
PER_STEP, PER_RUN = 1.8, 10.0
"""What DVC, Prefect and MLflow take, a step and a run, in units of `dvc status` (benchmarks/results/overhead.md)."""
LONG_STATUS = 4.0
"""Seconds above which `dvc status` has hashed files that it did not know yet."""
FICLONE = 0x40049409
Row = dict[str, Any]


class PlannedStep(TypedDict):
    """What is compared of a step's forecast."""

    seconds: float
    memory_mb: float
    disk_mb: float


class KeptPlan(TypedDict):
    """What is compared of the last plan with what came of it."""

    params: str
    steps: dict[str, PlannedStep]


def plan(places: ProjectPaths, config: Config) -> int:
    """Measure and print what `winnow run` would take; nothing of a run is started."""
    with run_lock.run_alone(places):
        stale, asking = _asked(places, config)
        if not stale:
            console.print("Nothing has changed: no step would run.")
            return 0
        data = None if "ingest" in stale else places.artifacts / "data"
        counts = counts_of(config, data, places.state_dir)
        console.print(f"To do: {len(stale)} steps. Each is tried in small, which takes a minute or two.")
        found = []
        for forecast in _forecasts(places, config, counts, list(stale)):
            found.append(replace(forecast, seconds=forecast.seconds + PER_STEP * asking))
            console.print(f"  {forecast.step}: {duration(found[-1].seconds)}", style="dim")
        once, kind = PER_RUN * asking, link_type(places)
        write_json(places.state_dir / "plan.json", _kept(places, found, once, kind))
    _show(found, counts, once, kind, places)
    return 0


def _asked(places: ProjectPaths, config: Config) -> tuple[dict[str, list[str]], float]:
    """What is stale, and how long `dvc status` takes once it knows all files."""
    began = time.monotonic()
    stale = dvc_stages.stale(places.root, config)
    taken = time.monotonic() - began
    if taken > LONG_STATUS:
        began = time.monotonic()
        dvc_stages.stale(places.root, config)
        taken = time.monotonic() - began
    return stale, taken


def beside(places: ProjectPaths, times: dict[str, dict[str, float]]) -> tuple[dict[str, Row], str]:
    """What was planned for the steps that ran, and one line on how near it was; nothing without a fitting plan.

    `times`: step -> {seconds, memory_mb, disk_mb} as they turned out.
    """
    kept = read_memory(places.state_dir / "plan.json", KeptPlan | None, None)
    if kept is None or kept["params"] != sha256_of(places.root / "params.yaml") or not set(kept["steps"]) >= set(times):
        return {}, ""
    planned: dict[str, Row] = {step: dict(kept["steps"][step]) for step in times}
    return planned, _nearness(planned, times)


def _nearness(planned: dict[str, Row], times: dict[str, dict[str, float]]) -> str:
    def both(key: str, total: Callable[[Iterable[float]], float]) -> tuple[float, float]:
        return total(row[key] for row in planned.values()), total(row[key] for row in times.values())

    seconds, disk, memory = both("seconds", sum), both("disk_mb", sum), both("memory_mb", max)
    return (
        f"Planned: {duration(seconds[0])}, it took {duration(seconds[1])} ({_off(*seconds)}); "
        f"{disk[0] / 1e3:.2f} GB of artifacts, {disk[1] / 1e3:.2f} GB ({_off(*disk)}); "
        f"memory {memory[0] / 1e3:.2f} GB, {memory[1] / 1e3:.2f} GB ({_off(*memory)})"
    )


def _off(planned: float, true: float) -> str:
    """How far the forecast was off, as a share of the truth."""
    return f"forecast {(planned / true - 1) * 100:+.0f} %" if true else "-"


def _forecasts(places: ProjectPaths, config: Config, counts: Counts, stages: list[str]) -> Iterator[Forecast]:
    """From the child process, as they come. Raises WinnowError with what a step has to say against its settings."""
    steps = [stage.removeprefix(dvc_stages.CANDIDATE) for stage in stages]
    told: list[str] = []
    command = [
        sys.executable,
        "-m",
        "tasks.forecast.step_costs",
        str(places.root / "params.yaml"),
        json.dumps(asdict(counts)),
    ]
    with (
        tempfile.TemporaryDirectory(dir=places.state_dir) as folder,
        subprocess.Popen(
            [*command, str(places.state_dir), folder, *steps],
            cwd=places.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        noise = threading.Thread(target=lambda: told.extend(child.stderr or ()), daemon=True)
        noise.start()
        try:
            for line in child.stdout:
                if line.startswith('{"error"'):
                    raise WinnowError(json.loads(line)["error"])
                if line.startswith('{"step"'):
                    yield Forecast(**json.loads(line))
        except BaseException:
            child.terminate()
            raise
        noise.join()
    if child.returncode != 0:
        raise WinnowError(f"the steps could not be tried in small:\n{''.join(told[-8:]).strip()}")


def _kept(places: ProjectPaths, found: list[Forecast], once: float, kind: str) -> Row:
    return {
        "params": sha256_of(places.root / "params.yaml"),
        "total_seconds": sum(row.seconds for row in found) + once,
        "disk_gb": _on_disk_gb(found, kind),
        "steps": {forecast.step: asdict(forecast) for forecast in found},
    }


def _on_disk_gb(found: list[Forecast], kind: str) -> float:
    """In artifacts/ and DVC's cache, which share their files where there are links of some kind."""
    return sum(row.disk_mb for row in found) * (1 if kind else 2) / 1e3


def _show(found: list[Forecast], counts: Counts, once: float, kind: str, places: ProjectPaths) -> None:
    told = f"About {counts.images:,} images: {counts.train:,} for training, {counts.budget:,} labels"
    table = Table("step", title=told, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("time", "memory, GB", "disk, GB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what it does")
    for forecast in found:
        sizes = (f"{forecast.memory_mb / 1e3:.1f}", f"{forecast.disk_mb / 1e3:.2f}")
        table.add_row(forecast.step, duration(forecast.seconds), *sizes, forecast.counted)
    seconds, disk_mb = sum(row.seconds for row in found) + once, sum(row.disk_mb for row in found)
    memory_mb = max(row.memory_mb for row in found)
    table.add_row("flow, tracking and servers", duration(once), "", "", "")
    table.add_row("total", duration(seconds), f"{memory_mb / 1e3:.1f}", f"{disk_mb / 1e3:.2f}", "", style="bold")
    console.print(table)
    needed = _on_disk_gb(found, kind)
    how = f"artifacts/ and DVC's cache share them ({kind})" if kind else "twice, in artifacts/ and in DVC's cache"
    free, memory = shutil.disk_usage(places.root).free / 1e9, memory_bytes()
    available = min(psutil.virtual_memory().available, memory)
    console.print(f"Disk: {needed:.1f} GB, {how}; {free:.0f} GB are free.")
    if needed > free:
        console.print("That is more than there is.", style="bold red")
    if memory_mb * 1e6 > available:
        there = f"{available / 1e9:.1f} of {memory / 1e9:.1f} GB"
        console.print(f"Memory: {memory_mb / 1e3:.1f} GB, more than the {there} that are free.", style="bold red")
    console.print(f"Done about {datetime.now().astimezone() + timedelta(seconds=seconds):%Y-%m-%d %H:%M} if begun now.")


def link_type(places: ProjectPaths) -> str:
    """How DVC's cache shares files with artifacts/ here: reflink, hardlink or symlink; empty where it copies them."""
    settings = configparser.ConfigParser()
    settings.read([places.root / ".dvc" / "config", places.root / ".dvc" / "config.local"])
    kinds = settings.get("cache", "type", fallback="reflink,copy")
    cache = places.root / ".dvc" / settings.get("cache", "dir", fallback="cache").strip('"')
    if not cache.parent.is_dir():
        return ""
    with (
        tempfile.TemporaryDirectory(dir=places.state_dir) as folder,
        tempfile.TemporaryDirectory(dir=cache.parent) as there,  # the cache itself may have to be made first
    ):
        source, target = Path(folder, "a"), Path(there, "b")
        source.write_bytes(b"winnow")
        for kind in (kind.strip() for kind in kinds.strip('"').split(",")):
            with contextlib.suppress(OSError):
                if kind == "copy":
                    return ""
                if kind == "reflink":
                    with source.open("rb") as one, target.open("wb") as other:
                        fcntl.ioctl(other.fileno(), FICLONE, one.fileno())
                elif kind == "hardlink":
                    target.unlink(missing_ok=True)
                    target.hardlink_to(source)
                return kind
    return ""
