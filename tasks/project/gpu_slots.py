"""One GPU job at a time per machine, by a global concurrency limit of Prefect named `gpu-HOSTNAME`.

A slot is held by a lease that the holder renews; after a kill the lease expires in LEASE_SECONDS and the slot is free
again. The limit is created before its first use; a limit that a user has changed stays.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

GPU = f"gpu-{socket.gethostname()}"
"""The name of this machine's limit: machines that share a server do not wait for each other."""
LEASE_SECONDS = 60
"""The shortest lease that Prefect's server accepts."""
DRIVER = Path("/proc/driver/nvidia/gpus")


def has_gpu() -> bool:
    """Return whether this process can see an NVIDIA GPU, from the driver's files, without torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and DRIVER.is_dir() and any(DRIVER.iterdir())


@contextlib.contextmanager
def gpu_slot() -> Iterator[None]:
    """Wait for the GPU's slot and hold it; do nothing on a machine without GPU. A lost lease stops no training."""
    if not has_gpu():
        yield
        return
    from prefect.concurrency.sync import concurrency

    create_limit()
    with concurrency(GPU, occupy=1, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False):
        yield


def create_limit() -> None:
    """Create this machine's limit of one job at a time, unless it exists."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))
            except (ObjectAlreadyExists, PrefectHTTPStatusError):
                # Another process may have created it meanwhile; otherwise this raises the reason.
                client.read_global_concurrency_limit_by_name(GPU)
