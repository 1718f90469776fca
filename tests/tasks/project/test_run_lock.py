from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.project import run_lock
from tasks.project.paths import ProjectPaths
from tests.closure import ROOT
from winnow.cli.run_commands import apply_settings

HOLD = """
import sys
from pathlib import Path
import tasks.project.run_lock
from tasks.project.paths import ProjectPaths
locks = {"run": tasks.project.run_lock.lock_run, "step": tasks.project.run_lock.lock_step}
with locks[sys.argv[1]](ProjectPaths(Path(sys.argv[2]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path)


@pytest.fixture
def other(paths: ProjectPaths, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the checkout."""
    command = [sys.executable, "-c", HOLD, request.param, str(paths.root)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("other", ["run"], indirect=True)
def test_a_run_keeps_others_out_and_is_named(paths: ProjectPaths, other: subprocess.Popen[str]) -> None:
    for asking in (run_lock.lock_run, run_lock.lock_step):
        with (
            pytest.raises(run_lock.ProjectLocked, match=f"process {other.pid}, since .*wait for it to end"),
            asking(paths),
        ):
            pass


@pytest.mark.parametrize("other", ["run"], indirect=True)
@pytest.mark.usefixtures("other")
def test_a_refused_run_changes_no_params_under_the_one_that_works(paths: ProjectPaths) -> None:
    params = paths.root / "params.yaml"
    params.write_text("seed: 1\n")
    with pytest.raises(run_lock.ProjectLocked):
        apply_settings(paths, ("seed=2",))
    assert params.read_text() == "seed: 1\n"


def test_a_run_holds_its_checkout_once(paths: ProjectPaths) -> None:
    with run_lock.lock_run(paths):
        with run_lock.lock_run(paths):
            pass
        assert (paths.state_dir / "run.holder").exists()  # still this one's
        run_lock.check_unlocked(paths)
    assert not (paths.state_dir / "run.holder").exists()


@pytest.mark.parametrize("other", ["run"], indirect=True)
def test_a_killed_run_lets_go(paths: ProjectPaths, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    with run_lock.lock_run(paths):
        pass


@pytest.mark.parametrize("other", ["run"], indirect=True)
def test_who_waits_says_so_once_and_goes_on(paths: ProjectPaths, other: subprocess.Popen[str]) -> None:
    told: list[str] = []

    def wait(message: str) -> None:
        told.append(message)
        assert other.stdin is not None
        other.stdin.close()

    with run_lock.lock_run(paths, wait):
        assert len(told) == 1
        assert f"process {other.pid}" in told[0]


@pytest.mark.parametrize("other", ["step"], indirect=True)
def test_steps_by_hand_share_and_keep_runs_out(paths: ProjectPaths, other: subprocess.Popen[str]) -> None:
    assert other.poll() is None
    with run_lock.lock_step(paths):
        pass
    with pytest.raises(run_lock.ProjectLocked, match="another run works in"), run_lock.lock_run(paths):
        pass


def test_between_two_steps_of_dvc_nobody_begins(paths: ProjectPaths, tmp_path: Path) -> None:
    """A stand-in named dvc runs a step to its end, and then waits for the next."""
    (tmp_path / "bin").mkdir()
    driver = tmp_path / "bin" / "dvc"
    step = HOLD.replace("    sys.stdin.read()\n", "")
    driver.write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {step!r}, 'step', {str(paths.root)!r}])\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(driver)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    time.sleep(0.5)  # the step has ended
    with pytest.raises(run_lock.ProjectLocked, match=f"process {process.pid}"), run_lock.lock_run(paths):
        pass
    process.communicate("")
    with run_lock.lock_run(paths):
        pass


def test_two_runs_after_one_another(paths: ProjectPaths) -> None:
    for _ in range(2):
        with run_lock.lock_run(paths):
            pass
