"""Parallel trials of a search on Dask workers, each a Prefect task.

Dask restarts a trial whose worker dies on another worker, where it resumes from the files in its folder. Only this
process writes the Optuna study, so a trial counts once, however often it was started.
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

from flows.runtime import exit_now, hide_tracebacks
from tasks.project import environment
from tasks.tracking.search_runs import SearchRun
from winnow.deploy.pytorch_inference import set_torch_threads
from winnow.errors import ConfigError
from winnow.hardware import cores
from winnow.search.loop import SearchProgress, search
from winnow.search.space import Point
from winnow.search.trial import EarlierTrial, SearchContext, TrialResult, machine_identity, run_point

IGNORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Preload of a worker: ignore Ctrl-C, which a terminal sends to the whole group. This process ends the workers."""
WORKERS_WITHIN = 60
"""Seconds to wait for the first worker."""


def search_in_parallel(
    place: SearchContext, storage: Path, log: SearchRun, workers: int, scheduler: str
) -> SearchProgress:
    """Run winnow.search.loop.search on `workers` local processes, or on the workers of a Dask scheduler.

    Raises ConfigError where there are no workers, or unsuitable ones.
    """
    hide_tracebacks()
    own_server = not os.environ.get("PREFECT_API_URL")
    runner = DaskTaskRunner(address=scheduler) if scheduler else DaskTaskRunner(cluster_class=_cluster_of(workers))

    @flow(name="winnow-search", task_runner=runner, validate_parameters=False, persist_result=False)
    def winnow_search() -> SearchProgress:
        try:
            return search(place, storage, log.trial, DaskRunner(place.machine))
        except BaseException as error:
            if own_server and not isinstance(error, Exception):  # Ctrl-C, or Prefect's exception for SIGTERM
                log.pause()
                logging.disable()  # Dask logs at length that its workers are gone
                _end_workers()
                exit_now()
            raise

    return winnow_search()


def _end_workers() -> None:
    """Kill the worker processes; Python's resource tracker first, which would warn about each of their semaphores."""
    commands = [(child, " ".join(child.cmdline())) for child in psutil.Process().children(recursive=True)]
    workers = [(child, command) for child, command in commands if "multiprocessing" in command]
    for child, _ in sorted(workers, key=lambda pair: "resource_tracker" not in pair[1]):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _cluster_of(workers: int) -> Callable[[], LocalCluster]:
    def local_cluster() -> LocalCluster:
        """Return a cluster of local processes that only this process can connect to, with this flow's Prefect API."""
        with get_client(sync_client=True) as client:
            address = str(client.api_url)
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # memory-mapped images count as memory: Dask would kill workers that read them
            host="127.0.0.1",
            protocol="tls",
            security=Security.temporary(),
            dashboard_address=None,
            preload=IGNORE_SIGINT,
            env={"PREFECT_API_URL": address},
        )

    return local_cluster


class DaskRunner:
    """A trial runner for winnow.search.loop.search, inside a flow whose tasks run on Dask workers like `machine`."""

    def __init__(self, machine: str) -> None:
        context = FlowRunContext.get()
        assert context is not None
        try:
            client: Any = context.task_runner.client  # type: ignore[attr-defined]
            client.wait_for_workers(1, timeout=WORKERS_WITHIN)
        except TimeoutError as error:
            raise ConfigError(
                f"no Dask worker connected within {WORKERS_WITHIN} s; start some with `dask worker`"
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"--scheduler: no Dask scheduler answers there ({error})") from error
        workers = client.scheduler_info(n_workers=-1)["workers"]
        check_workers(
            {name: worker["nthreads"] for name, worker in workers.items()}, client.run(machine_identity), machine
        )
        self.slots = len(workers)
        self.threads = max(1, cores() // max(Counter(worker["host"] for worker in workers.values()).values()))
        """Threads per trial: the trials on one machine share its cores."""
        self._under_way: dict[int, tuple[float, Any]] = {}
        self._ended: SimpleQueue[int] = SimpleQueue()

    def submit(
        self, place: SearchContext, number: int, point: Point, earlier: Sequence[EarlierTrial], dense: float
    ) -> None:
        """Submit a trial to a worker."""
        root = os.environ[environment.ROOT_VARIABLE]
        future: Any = _trial.submit(root, self.threads, place, number, point, list(earlier), dense)
        self._under_way[number] = (time.monotonic(), future)
        future.wrapped_future.add_done_callback(lambda _: self._ended.put(number))

    def next(self) -> tuple[int, TrialResult]:
        """Wait for the next trial to end; return (number, result)."""
        number = self._ended.get()
        started, future = self._under_way.pop(number)
        return number, trial_result(future.result, time.monotonic() - started)


def check_workers(threads: dict[str, int], machines: dict[str, str], machine: str) -> None:
    """Raise ConfigError for a worker with several threads, or on another machine than `machine`.

    Threads of a process would share PyTorch's settings; costs of different machines cannot be compared.
    """
    for name, count in threads.items():
        if count != 1:
            raise ConfigError(f"the Dask worker {name} has {count} threads; start it with `dask worker --nthreads 1`")
    for name, worker_machine in machines.items():
        if worker_machine != machine:
            raise ConfigError(
                f"costs are measured on {machine}; the Dask worker {name} is on {worker_machine}: leave it out"
            )


def trial_result(result: Callable[[], TrialResult], seconds: float) -> TrialResult:
    """Return the result of a trial; a trial whose workers all died is marked failed (state "impossible")."""
    try:
        return result()
    except KilledWorker as error:
        reason = f"its worker died {error.allowed_failures + 1} times, perhaps for lack of memory"
        return TrialResult("impossible", reason, None, None, seconds)


@task(name="trial", task_run_name="trial {number}", persist_result=False)
def _trial(
    root: str, threads: int, place: SearchContext, number: int, point: Point, earlier: list[EarlierTrial], dense: float
) -> TrialResult:
    """Run a trial on a worker, after setting up the project's environment there."""
    environment.apply(Path(root))
    set_torch_threads(threads)
    return run_point(place, number, point, earlier, dense)
