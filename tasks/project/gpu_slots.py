"""Named concurrency slots of Prefect's: work on the GPU takes `gpu-HOSTNAME`, so that no two runs train on it at once.

A slot is held by a lease that the holder renews; a killed holder's lease runs out after LEASE_SECONDS and the slot is
free again. The limit is made before its first use, and one that a person has changed stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

GPU = f"gpu-{socket.gethostname()}"
"""This machine's: two machines at one server do not wait for one another."""
LEASE_SECONDS = 60
"""The least that Prefect's server takes."""
DRIVER = Path("/proc/driver/nvidia/gpus")


def has_gpu() -> bool:
    """Whether a step would find an NVIDIA GPU here; asked of the driver, without torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and DRIVER.is_dir() and any(DRIVER.iterdir())


@contextlib.contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold the GPU's slot, waiting for it; nothing where there is no GPU."""
    if not has_gpu():
        yield
        return
    with slot(GPU):
        yield


@contextlib.contextmanager
def slot(name: str) -> Iterator[None]:
    """Hold one slot of a limit, which is made where it is missing. A lost lease stops no training that goes on."""
    from prefect.concurrency.sync import concurrency

    ensure(name)
    with concurrency(name, occupy=1, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False):
        yield


def ensure(name: str, limit: int = 1) -> None:
    """Make a limit that is not there."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            made = GlobalConcurrencyLimitCreate(name=name, limit=limit)
            try:
                client.create_global_concurrency_limit(made)
            except (ObjectAlreadyExists, PrefectHTTPStatusError):
                client.read_global_concurrency_limit_by_name(name)  # somebody else was quicker, or it is told why not
