"""Trials of a search side by side on Dask's workers, each a task of Prefect's.

A trial whose worker dies is begun again by Dask, on another worker or the one that takes its place, and goes on from
what lies in its folder. The study is kept by this process alone: a trial counts once, however often it was begun.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
from distributed import LocalCluster, Security
from distributed.scheduler import KilledWorker
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect_dask import DaskTaskRunner

from flows.runtime import leave_at_once, without_tracebacks
from tasks.project import paths
from tasks.tracking.search_runs import Log
from winnow.deploy.runtimes import set_torch_threads
from winnow.errors import ConfigError
from winnow.hardware import cores
from winnow.search.loop import Progress, search
from winnow.search.space import Point
from winnow.search.trial import Earlier, Result, SearchContext, machine_here, run_point

DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What a worker does first: Ctrl-C in a terminal reaches a whole group, and this process ends its workers itself."""
WORKERS_WITHIN = 60
"""Seconds until the first worker has to be there."""


def search_side_by_side(place: SearchContext, storage: Path, log: Log, workers: int, scheduler: str) -> Progress:
    """winnow.search.loop.search with `workers` processes of this machine, or the workers of a Dask scheduler.

    Raises ConfigError where there are none, or such that cannot be used.
    """
    without_tracebacks()
    own_server = not os.environ.get("PREFECT_API_URL")
    runner = DaskTaskRunner(address=scheduler) if scheduler else DaskTaskRunner(cluster_class=_cluster_of(workers))

    @flow(name="winnow-search", task_runner=runner, validate_parameters=False, persist_result=False)
    def winnow_search() -> Progress:
        try:
            return search(place, storage, log.trial, OnDask(place.machine))
        except BaseException as error:
            if own_server and not isinstance(error, Exception):  # Ctrl-C, or Prefect's word for a kill
                log.pause()
                logging.disable()  # Dask tells at length that its workers are gone
                _end_workers()
                leave_at_once()
            raise

    return winnow_search()


def _end_workers() -> None:
    """Dask's processes, and before them Python's keeper of their semaphores, which would complain of each."""
    told = [(child, " ".join(child.cmdline())) for child in psutil.Process().children(recursive=True)]
    spawned = [(child, line) for child, line in told if "multiprocessing" in line]
    for child, _ in sorted(spawned, key=lambda one: "resource_tracker" not in one[1]):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _cluster_of(workers: int) -> Callable[[], LocalCluster]:
    def local_cluster() -> LocalCluster:
        """Processes of this machine that nobody else can talk to, told where this flow's Prefect is."""
        with get_client(sync_client=True) as client:
            address = str(client.api_url)
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # images are mapped and count as memory: Dask would kill who reads them
            host="127.0.0.1",
            protocol="tls",
            security=Security.temporary(),
            dashboard_address=None,
            preload=DEAF,
            env={"PREFECT_API_URL": address},
        )

    return local_cluster


class OnDask:
    """A runner (winnow/search/loop.py) within a flow whose tasks run on Dask; its workers measure on `machine`."""

    def __init__(self, machine: str) -> None:
        context = FlowRunContext.get()
        assert context is not None
        try:
            client: Any = context.task_runner.client  # type: ignore[attr-defined]
            client.wait_for_workers(1, timeout=WORKERS_WITHIN)
        except TimeoutError as error:
            raise ConfigError(f"no Dask worker came within {WORKERS_WITHIN} s: start some, `dask worker`") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"--scheduler: no Dask scheduler answers there ({error})") from error
        workers = client.scheduler_info(n_workers=-1)["workers"]
        check_workers({name: worker["nthreads"] for name, worker in workers.items()}, client.run(machine_here), machine)
        self.slots = len(workers)
        self.threads = max(1, cores() // max(Counter(worker["host"] for worker in workers.values()).values()))
        """Of a training, so that those of one machine share its cores."""
        self._under_way: dict[int, tuple[float, Any]] = {}
        self._ended: SimpleQueue[int] = SimpleQueue()

    def submit(self, place: SearchContext, number: int, point: Point, earlier: Sequence[Earlier], dense: float) -> None:
        """Hand a trial to a worker."""
        root = os.environ[paths.OWNER]
        future: Any = _trial.submit(root, self.threads, place, number, point, list(earlier), dense)
        self._under_way[number] = (time.monotonic(), future)
        future.wrapped_future.add_done_callback(lambda _: self._ended.put(number))

    def next(self) -> tuple[int, Result]:
        """The next that ends."""
        number = self._ended.get()
        began, future = self._under_way.pop(number)
        return number, outcome(future.result, time.monotonic() - began)


def check_workers(threads: dict[str, int], machines: dict[str, str], machine: str) -> None:
    """Raise ConfigError for a worker that runs several trials in one process, or whose costs would be another's."""
    for name, count in threads.items():
        if count != 1:
            raise ConfigError(f"the Dask worker {name} has {count} threads; start it with `dask worker --nthreads 1`")
    for name, there in machines.items():
        if there != machine:
            raise ConfigError(f"costs are measured on {machine}; the Dask worker {name} is on {there}: leave it out")


def outcome(result: Callable[[], Result], seconds: float) -> Result:
    """What became of a trial; one whose workers all died is impossible, and took its time."""
    try:
        return result()
    except KilledWorker as error:
        told = f"its worker died {error.allowed_failures + 1} times, for want of memory perhaps"
        return Result("impossible", told, None, None, seconds)


@task(name="trial", task_run_name="trial {number}", persist_result=False)
def _trial(
    root: str, threads: int, place: SearchContext, number: int, point: Point, earlier: list[Earlier], dense: float
) -> Result:
    """On a worker, which knows nothing of the project yet."""
    paths.apply(Path(root))
    set_torch_threads(threads)
    return run_point(place, number, point, earlier, dense)
