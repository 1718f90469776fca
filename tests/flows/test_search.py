from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.scheduler import KilledWorker

from flows.search import _trial, check_workers, trial_result
from tasks.project.paths import ProjectPaths
from tests.closure import ROOT
from winnow.cli.search import WorkerPool, check_pool
from winnow.errors import ConfigError, MissingExtra
from winnow.search.space import Point
from winnow.search.trial import TrialResult


def test_a_worker_with_several_threads_is_refused() -> None:
    with pytest.raises(ConfigError, match="tcp://there has 4 threads; start it with `dask worker --nthreads 1`"):
        check_workers({"tcp://here": 1, "tcp://there": 4}, {}, "this processor")


def test_a_worker_on_another_processor_is_refused() -> None:
    check_workers({"a": 1}, {"a": "this processor"}, "this processor")
    with pytest.raises(ConfigError, match="measured on this processor; the Dask worker b is on another: leave it out"):
        check_workers({}, {"a": "this processor", "b": "another"}, "this processor")


def test_a_trial_whose_workers_all_died_is_failed_with_its_time() -> None:
    def run_killed_trial() -> TrialResult:
        raise KilledWorker("trial", None, 3)

    result = trial_result(run_killed_trial, 12.0)
    assert (result.state, result.seconds) == ("impossible", 12.0)
    assert "died 4 times" in result.why
    finished = TrialResult("finished", "", None, None, 1.0)
    assert trial_result(lambda: finished, 12.0) is finished


def test_a_trial_takes_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    thread_counts: list[int] = []
    monkeypatch.setattr("flows.search.run_point", lambda *_: thread_counts.append(torch.get_num_threads()))
    previous_threads = torch.get_num_threads()
    run_trial: Any = _trial.fn
    try:
        with ThreadPoolExecutor(1) as executor:  # torch's thread count is per thread
            executor.submit(
                run_trial, os.environ["WINNOW_ROOT"], 3, None, 0, Point("prune", 0.5, "none"), [], 1.0
            ).result()
    finally:
        torch.set_num_threads(previous_threads)
    assert thread_counts == [3]


@pytest.mark.parametrize("pool", [WorkerPool(0), WorkerPool(2, "tcp://127.0.0.1:1")])
def test_workers_and_scheduler_exclude_each_other(tmp_path: Path, pool: WorkerPool) -> None:
    with pytest.raises(ConfigError, match="--workers: at least 1, and not together with --scheduler"):
        check_pool(ProjectPaths(tmp_path), pool)


def test_a_scheduler_needs_a_prefect_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigError, match="set PREFECT_API_URL to a server that they can reach"):
        check_pool(ProjectPaths(tmp_path), WorkerPool(scheduler="tcp://127.0.0.1:1"))


def test_on_a_gpu_trials_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.cli.search.gpu_slots.has_gpu", lambda: True)
    with pytest.raises(ConfigError, match="its GPU, one training at a time"):
        check_pool(ProjectPaths(tmp_path), WorkerPool(2))


def test_without_dask_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.cli.search.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="parallel"):
        check_pool(ProjectPaths(tmp_path), WorkerPool(2))


DEFER_SIGNALS = """
import signal
import tasks.tracking.search_runs
before = signal.getsignal(signal.SIGINT)
try:
    with tasks.tracking.search_runs.defer_signals():
        signal.raise_signal(signal.SIGINT)
        print("whole")
except KeyboardInterrupt:
    print("ends", signal.getsignal(signal.SIGINT) == before)
with tasks.tracking.search_runs.defer_signals():
    print("goes on")
try:
    with tasks.tracking.search_runs.defer_signals():
        signal.raise_signal(signal.SIGINT)
        raise ValueError
except KeyboardInterrupt:
    print("ends too")
"""


@pytest.mark.thorough
def test_a_write_is_finished_before_ctrl_c_counts() -> None:
    """Run in a child process: a signal would end the test process."""
    result = subprocess.run([sys.executable, "-c", DEFER_SIGNALS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["whole", "ends True", "goes on", "ends too"]
