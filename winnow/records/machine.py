"""The machine on which figures were measured: its processor, flags, cores and library versions."""

from __future__ import annotations

import importlib.metadata
import platform

from winnow.hardware import SPEED_FLAGS, cores, cpu_flags, cpu_name, memory_gb
from winnow.records.model import RecordModel


class Machine(RecordModel):
    """The machine on which a figure was measured. Figures of two machines are never compared."""

    cpu: str
    """Name of the processor."""
    flags: tuple[str, ...]
    """The processor flags that decide speed: avx2, avx512f, avx512_vnni, avx512_bf16, amx_tile, amx_int8, amx_bf16."""
    threads: int
    """Number of cores that a run may use."""
    memory_gb: float
    """Memory in GB."""
    gpu: str
    """Name of the GPU; empty without one."""
    system: str
    """Operating system and Python version."""
    versions: dict[str, str]
    """Package -> version: torch, onnxruntime, openvino, ..."""

    @property
    def identity(self) -> str:
        """Return what must be equal for times to be comparable; versions are recorded, but do not invalidate times."""
        return f"{self.cpu}, {self.threads} threads, {' '.join(self.flags) or 'no flags'}"


VERSIONED_PACKAGES = (
    *("torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("nncf", "torch-pruning", "onnx", "numpy", "pillow"),
)


def this_machine(gpu: str = "") -> Machine:
    """Return the description of this machine. `gpu`: the device's name where torch finds one (this file imports no
    torch).
    """
    versions = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=cpu_name(),
        flags=tuple(flag for flag in SPEED_FLAGS if flag in cpu_flags()),
        threads=cores(),
        memory_gb=memory_gb(),
        gpu=gpu,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions=versions,
    )
