from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from winnow.timing_lock import LOCK_FOLDER_VARIABLE, compute_lock, timing_lock

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_FOLDER_VARIABLE, str(tmp_path))


def train(steps: Path, stop: Event) -> None:
    """Writes when each step began and ended."""
    with steps.open("a") as file:
        while not stop.is_set():
            with compute_lock():
                began = time.monotonic()
                time.sleep(0.01)
                file.write(f"{began} {time.monotonic()}\n")
                file.flush()


def test_who_times_is_alone_and_gets_a_turn(tmp_path: Path) -> None:
    stop, files = SPAWN.Event(), [tmp_path / "a", tmp_path / "b"]
    trainers = [SPAWN.Process(target=train, args=(file, stop)) for file in files]
    for trainer in trainers:
        trainer.start()
    while not all(file.exists() and file.stat().st_size for file in files):
        time.sleep(0.02)
    quiet = []
    for _ in range(3):
        asked = time.monotonic()
        with timing_lock():
            began = time.monotonic()
            time.sleep(0.1)
            quiet.append((began, time.monotonic()))
        assert began - asked < 2  # trainings that take their turn at once do not starve it
        time.sleep(0.1)
    stop.set()
    for trainer in trainers:
        trainer.join()
    steps = [tuple(map(float, line.split())) for file in files for line in file.read_text().splitlines()]
    assert not [step for step in steps for one in quiet if step[0] < one[1] and one[0] < step[1]]
    assert [step for step in steps if step[0] > quiet[-1][1]]
    # Trainings do run beside each other.
    assert len(steps) > 20


def test_a_turn_within_a_turn_is_the_same_one() -> None:
    with compute_lock(), compute_lock():
        pass
    with timing_lock(), compute_lock():  # one's own work does not disturb one
        pass
    with (
        compute_lock(),
        pytest.raises(RuntimeError, match="timing_lock within compute_lock would wait for itself"),
        timing_lock(),
    ):
        pass
    with timing_lock():  # nothing is left over
        pass


def hold(ready: Event) -> None:
    with timing_lock():
        ready.set()
        time.sleep(60)


def test_a_killed_process_holds_nothing() -> None:
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold, args=(ready,))
    holder.start()
    assert ready.wait(30)
    holder.kill()
    holder.join()
    with compute_lock(), compute_lock():
        pass
    with timing_lock():
        pass
