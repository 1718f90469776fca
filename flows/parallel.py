"""Trials of a search side by side on Dask's workers, each a task of Prefect's.

A trial whose worker dies is begun again by Dask, on another worker or the one that takes its place, and goes on from
what lies in its folder. The study is kept by this process alone: a trial counts once, however often it was begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from distributed import LocalCluster, Security
from distributed.scheduler import KilledWorker
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect_dask import DaskTaskRunner

from winnow.errors import ConfigError
from winnow.machine import cores
from winnow.search.space import Point
from winnow.search.study import Progress, Trial, search
from winnow.search.trial import Earlier, Result, Workplace, run_point

WORKERS_WITHIN = 60
"""Seconds until the first worker has to be there."""


def search_side_by_side(
    place: Workplace, storage: Path, tell: Callable[[Trial], None], workers: int, scheduler: str
) -> Progress:
    """winnow.search.study.search with `workers` processes of this machine, or the workers of a Dask scheduler."""
    runner = DaskTaskRunner(address=scheduler) if scheduler else DaskTaskRunner(cluster_class=_cluster_of(workers))

    @flow(name="winnow-search", task_runner=runner, validate_parameters=False, persist_result=False)
    def winnow_search() -> Progress:
        return search(place, storage, tell, OnDask())

    return winnow_search()


def _cluster_of(workers: int) -> Callable[[], LocalCluster]:
    def local_cluster() -> LocalCluster:
        """Processes of this machine that nobody else can talk to, told where this flow's Prefect is."""
        with get_client(sync_client=True) as client:
            address = str(client.api_url)
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tls",
            security=Security.temporary(),
            dashboard_address=None,
            env={"PREFECT_API_URL": address, "OMP_NUM_THREADS": str(max(1, cores() // workers))},
        )

    return local_cluster


class OnDask:
    """A runner (winnow/search/study.py) within a flow whose tasks run on Dask."""

    def __init__(self) -> None:
        context = FlowRunContext.get()
        assert context is not None
        client: Any = context.task_runner.client  # type: ignore[attr-defined]
        try:
            client.wait_for_workers(1, timeout=WORKERS_WITHIN)
        except TimeoutError as error:
            raise ConfigError(f"no Dask worker came within {WORKERS_WITHIN} s: start some, `dask worker`") from error
        self.slots = len(client.scheduler_info(n_workers=-1)["workers"])
        self._under_way: dict[int, Any] = {}
        self._ended: SimpleQueue[int] = SimpleQueue()

    def submit(self, place: Workplace, number: int, point: Point, earlier: Sequence[Earlier], dense: float) -> None:
        """Hand a trial to a worker."""
        future: Any = _trial.submit(place, number, point, list(earlier), dense)
        self._under_way[number] = future
        future.wrapped_future.add_done_callback(lambda _: self._ended.put(number))

    def next(self) -> tuple[int, Result]:
        """The next that ends."""
        number = self._ended.get()
        try:
            return number, self._under_way.pop(number).result()
        except KilledWorker as error:
            told = f"its worker died {error.allowed_failures + 1} times, for want of memory perhaps"
            return number, Result("impossible", told, None, None, 0.0)


@task(name="trial", task_run_name="trial {number}", persist_result=False)
def _trial(place: Workplace, number: int, point: Point, earlier: list[Earlier], dense: float) -> Result:
    return run_point(place, number, point, earlier, dense)
