"""Check what this machine has, what winnow lacks for which feature, and how to install it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.table import Table

from tasks.project.disk_errors import MIN_FREE_BYTES
from tasks.project.paths import ProjectPaths
from tasks.project.running_servers import is_reachable
from tasks.tracking.tracking_store import redact_password
from winnow.cli.command_setup import load_project_config
from winnow.cli.terminal import Terminal
from winnow.config import Config
from winnow.errors import WinnowError
from winnow.hardware import SPEED_FLAGS, cores, cpu_flags, cpu_name, has_fast_bf16, int8_sums_saturate, memory_gb

PACKAGE = "winnow-vision"
FEATURES = {
    "compress": "pruning, quantization and export to ONNX",
    "runtimes": "the benchmark and predictions in ONNX Runtime and OpenVINO",
    "tables": "labels and images in Parquet",
    "heic": "photographs of iPhones (HEIC)",
    "report": "reports, plots and statistics",
    "orchestrate": "runs, schedules and tracking (DVC, Prefect, MLflow)",
    "servers": "the servers of a team (`winnow team`)",
    "serve": "`winnow serve`",
    "search": "`winnow search`",
    "weights": "known weights of timm and of the package efficientnet-lite0",
    "parallel": "`winnow search --workers`",
}
"""Extra of the package -> what it is for. `cuda` is checked where there is a GPU."""
LITTLE_MEMORY_GB, LITTLE_DISK_BYTES = 4.0, 5e9
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
SERVERS = {"MLflow": "MLFLOW_TRACKING_URI", "Prefect": "PREFECT_API_URL"}
GPU_DRIVER = Path("/proc/driver/nvidia/version")

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """What was found on one topic, and what to do about it."""

    topic: str
    state: State
    """ok; note: winnow works, but slower or without a feature; missing: a run cannot start."""
    found: str
    remedy: str = ""


def check_machine(root: Path) -> Iterator[Check]:
    """Check processor, memory, disk, compiler and GPU."""
    yield _check_processor()
    memory = memory_gb()
    advice = "" if memory >= LITTLE_MEMORY_GB else "`winnow plan` shows the memory that each step needs"
    yield Check("memory", "note" if advice else "ok", f"{memory:.1f} GB", advice)
    free = shutil.disk_usage(root).free
    state: State = "missing" if free < MIN_FREE_BYTES else "note" if free < LITTLE_DISK_BYTES else "ok"
    advice = "" if state == "ok" else "free space; `winnow plan` shows what a run needs"
    yield Check("disk", state, f"{free / 1e9:.1f} GB free in {root}", advice)
    if compiler := shutil.which("g++"):
        yield Check("compiler", "ok", compiler)
    else:
        yield Check(
            "compiler",
            "note",
            "no g++ on the PATH, so PyTorch's compiled speed is not measured",
            "install g++, on Debian and Ubuntu by: apt install g++",
        )
    yield _check_gpu()


def _check_processor() -> Check:
    flags = cpu_flags()
    known = " ".join(flag for flag in SPEED_FLAGS if flag in flags) or "no flags that decide speed"
    found, advice = f"{cpu_name()}, {cores()} cores; {known}", []
    if int8_sums_saturate(flags):
        advice.append("no VNNI: int8 gains little speed, and needs `overflow_safe: true` to keep its accuracy")
    if not has_fast_bf16():
        advice.append("no bf16: trainings take about twice as long as on a processor that has it")
    return Check("processor", "note" if advice else "ok", found, "; ".join(advice))


def _check_gpu() -> Check:
    if not GPU_DRIVER.exists():
        return Check("GPU", "ok", "none (no driver of NVIDIA); winnow trains on the processor")
    import torch

    if not torch.cuda.is_available():
        remedy = "compare the driver with the CUDA version of PyTorch: python -m torch.utils.collect_env"
        return Check("GPU", "note", f"the driver is installed, but PyTorch {torch.__version__} cannot use it", remedy)
    is_missing = _package_problem(Requirement("onnxruntime-gpu"))
    remedy = "extra cuda measures ONNX Runtime on it (docs/compression.md)" if is_missing else ""
    return Check("GPU", "ok", torch.cuda.get_device_name(0), remedy)


def check_packages() -> Iterator[Check]:
    """Check the packages of each extra, and their versions."""
    for extra, feature in FEATURES.items():
        problems = [problem for need in _requirements(extra) if (problem := _package_problem(need))]
        if problems:
            state: State = "missing" if extra == "orchestrate" else "note"
            remedy = f"for {feature}: pip install '{PACKAGE}[{extra}]'"
            yield Check(f"packages: {extra}", state, ", ".join(problems), remedy)
        else:
            yield Check(f"packages: {extra}", "ok", feature)
    if not shutil.which("git"):
        yield Check("git", "note", "not on the PATH", "install git to keep versions of params.yaml and dvc.lock")


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yield what an extra needs on this platform."""
    for text in importlib.metadata.requires(PACKAGE) or ():
        need = Requirement(text)
        if need.marker and need.marker.evaluate({"extra": extra}) and not need.marker.evaluate({"extra": ""}):
            yield need


def _package_problem(need: Requirement) -> str:
    """Return what is wrong with a package; empty where a fitting version is installed."""
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{need.name} is not installed"
    fits = need.specifier.contains(version, prereleases=True)
    return "" if fits else f"{need.name} {version} is installed, {need.specifier} is needed"


def check_network() -> Iterator[Check]:
    """Check proxies, and the servers that environment variables name."""
    proxies = {name: redact_password(os.environ[name]) for name in PROXIES if os.environ.get(name)}
    if proxies:
        listed = ", ".join(f"{name}={address}" for name, address in proxies.items())
        yield Check("proxy", "ok", f"{listed}; not used for servers on this machine")
    for topic, variable in SERVERS.items():
        address = os.environ.get(variable, "")
        if not address.startswith("http"):
            continue
        shown = redact_password(address)
        if is_reachable(f"{address.rstrip('/')}/health"):
            yield Check(topic, "ok", f"a server responds at {shown}")
        else:
            yield Check(topic, "missing", f"no server responds at {shown}", f"start it, or unset {variable}")


def check_project(paths: ProjectPaths) -> Iterator[Check]:
    """Check params.yaml, the files that it names, and whether artifacts can share disk space with DVC's cache."""
    try:
        config: Config = load_project_config(paths)
    except WinnowError as error:
        yield Check("params.yaml", "missing", str(error).strip(), "docs/reference/params.md describes every key")
        return
    yield Check("params.yaml", "ok", f"{len(config.candidates)} candidates, images from {config.data.path}")
    cache = paths.root / ".dvc" / "cache"
    if cache.exists() and paths.artifacts.exists() and cache.stat().st_dev != paths.artifacts.stat().st_dev:
        found = "artifacts/ and DVC's cache are on different disks, so every artifact is stored twice"
        yield Check("DVC's cache", "note", found, "dvc cache dir, for a folder on the disk of the project")


def run_checks(paths: ProjectPaths | None) -> list[Check]:
    """Run all checks; `paths`: the project, None outside of one."""
    checks = [*check_machine(paths.root if paths else Path.cwd()), *check_packages(), *check_network()]
    return checks + (list(check_project(paths)) if paths else [])


def print_checks(paths: ProjectPaths | None) -> int:
    """Print the checks as a table; return 2 where something is missing that a run needs, else 0."""
    checks = run_checks(paths)
    table = Table(box=None, pad_edge=False)
    for title in ("topic", "state", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(check.topic, check.state, check.found, check.remedy)
    console = Terminal(soft_wrap=False)
    console.print(table)
    missing = [check.topic for check in checks if check.state == "missing"]
    if missing:
        console.print(f"\nA run cannot start: {', '.join(missing)}.")
    return 2 if missing else 0
