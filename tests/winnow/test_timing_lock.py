from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from winnow.timing_lock import LOCK_FOLDER_VARIABLE, compute_lock, timing_lock

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def lock_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path))


def run_trainer(steps: Path, stop: Event) -> None:
    """Write the start and end of each step until `stop` is set."""
    with steps.open("a") as file:
        while not stop.is_set():
            with compute_lock():
                start = time.monotonic()
                time.sleep(0.01)
                file.write(f"{start} {time.monotonic()}\n")
                file.flush()


def test_timing_excludes_training_and_is_not_starved(tmp_path: Path) -> None:
    stop, files = SPAWN.Event(), [tmp_path / "a", tmp_path / "b"]
    trainers = [SPAWN.Process(target=run_trainer, args=(file, stop)) for file in files]
    for trainer in trainers:
        trainer.start()
    while not all(file.exists() and file.stat().st_size for file in files):
        time.sleep(0.02)
    timings = []
    for _ in range(3):
        request_time = time.monotonic()
        with timing_lock():
            start = time.monotonic()
            time.sleep(0.1)
            timings.append((start, time.monotonic()))
        assert start - request_time < 2  # trainings that reacquire the lock at once do not starve it
        time.sleep(0.1)
    stop.set()
    for trainer in trainers:
        trainer.join()
    steps = [tuple(map(float, line.split())) for file in files for line in file.read_text().splitlines()]
    assert not [step for step in steps for timing in timings if step[0] < timing[1] and timing[0] < step[1]]
    assert [step for step in steps if step[0] > timings[-1][1]]
    # Trainings run concurrently.
    assert len(steps) > 20


def test_the_locks_are_reentrant() -> None:
    with compute_lock(), compute_lock():
        pass
    with timing_lock(), compute_lock():  # the locks of one thread do not exclude each other
        pass
    with (
        compute_lock(),
        pytest.raises(RuntimeError, match="timing_lock within compute_lock would wait for itself"),
        timing_lock(),
    ):
        pass
    with timing_lock():  # no lock remains
        pass


def hold_timing_lock(ready: Event) -> None:
    with timing_lock():
        ready.set()
        time.sleep(60)


def test_a_killed_process_releases_the_lock() -> None:
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold_timing_lock, args=(ready,))
    holder.start()
    assert ready.wait(30)
    holder.kill()
    holder.join()
    with compute_lock(), compute_lock():
        pass
    with timing_lock():
        pass


def test_a_missing_folder_for_the_locks_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path / "new" / "locks"))
    with compute_lock():
        pass
    assert len(list((tmp_path / "new" / "locks").iterdir())) == 2
