from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.project import environment, run_lock
from tasks.project.paths import ProjectPaths
from tasks.versioning import dvc_stages
from tests.closure import ROOT
from tests.handmade import write_named_files, write_run
from winnow.cli.main import main
from winnow.cli.run_commands import apply_settings

HOLD_LOCK = """
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
def lock_holder(paths: ProjectPaths, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the checkout's lock."""
    command = [sys.executable, "-c", HOLD_LOCK, request.param, str(paths.root)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("lock_holder", ["run"], indirect=True)
def test_a_run_keeps_others_out_and_is_named(paths: ProjectPaths, lock_holder: subprocess.Popen[str]) -> None:
    for acquire in (run_lock.lock_run, run_lock.lock_step):
        with (
            pytest.raises(run_lock.ProjectLocked, match=f"process {lock_holder.pid}, since .*wait for it to end"),
            acquire(paths),
        ):
            pass


@pytest.mark.parametrize("lock_holder", ["run"], indirect=True)
@pytest.mark.usefixtures("lock_holder")
def test_a_refused_run_does_not_change_params(paths: ProjectPaths) -> None:
    params = paths.root / "params.yaml"
    params.write_text("seed: 1\n")
    with pytest.raises(run_lock.ProjectLocked):
        apply_settings(paths, ("seed=2",))
    assert params.read_text() == "seed: 1\n"


@pytest.mark.parametrize("lock_holder", ["run"], indirect=True)
@pytest.mark.parametrize(
    "arguments", [["track"], ["search"], ["label", "suggest", "3"], ["label", "check"]], ids=" ".join
)
def test_commands_that_need_the_checkout_name_the_run(
    paths: ProjectPaths,
    lock_holder: subprocess.Popen[str],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They neither write what the run writes, nor call DVC, which is locked while a stage runs."""
    write_run(paths.root)
    write_named_files(paths.root)
    monkeypatch.chdir(paths.root)
    for key, value in environment.process_environment(paths.root).items():
        monkeypatch.setenv(key, value)  # the command sets these, too; here they are set back
    monkeypatch.setattr(dvc_stages, "stale_stages", lambda *_: pytest.fail("DVC was called"))
    with pytest.raises(SystemExit) as exc_info:
        main(arguments)
    assert exc_info.value.code == 2
    assert f"process {lock_holder.pid}" in capsys.readouterr().err


def test_a_run_cannot_lock_its_checkout_twice(paths: ProjectPaths) -> None:
    with run_lock.lock_run(paths):
        with run_lock.lock_run(paths):
            pass
        assert (paths.state_dir / "run.holder").exists()  # still this one's
        run_lock.check_unlocked(paths)
    assert not (paths.state_dir / "run.holder").exists()


@pytest.mark.parametrize("lock_holder", ["run"], indirect=True)
def test_a_killed_run_releases_the_lock(paths: ProjectPaths, lock_holder: subprocess.Popen[str]) -> None:
    lock_holder.kill()
    lock_holder.wait()
    with run_lock.lock_run(paths):
        pass


@pytest.mark.parametrize("lock_holder", ["run"], indirect=True)
def test_waiting_is_reported_once_until_the_lock_is_free(
    paths: ProjectPaths, lock_holder: subprocess.Popen[str]
) -> None:
    messages: list[str] = []

    def wait(message: str) -> None:
        messages.append(message)
        assert lock_holder.stdin is not None
        lock_holder.stdin.close()

    with run_lock.lock_run(paths, wait):
        assert len(messages) == 1
        assert f"process {lock_holder.pid}" in messages[0]


@pytest.mark.parametrize("lock_holder", ["step"], indirect=True)
def test_manual_steps_share_the_lock_and_exclude_runs(paths: ProjectPaths, lock_holder: subprocess.Popen[str]) -> None:
    assert lock_holder.poll() is None
    with run_lock.lock_step(paths):
        pass
    with pytest.raises(run_lock.ProjectLocked, match="another run works in"), run_lock.lock_run(paths):
        pass


def test_dvc_holds_the_lock_between_two_steps(paths: ProjectPaths, tmp_path: Path) -> None:
    """A script named dvc runs a step to its end, then waits as DVC does before the next step."""
    (tmp_path / "bin").mkdir()
    driver = tmp_path / "bin" / "dvc"
    step = HOLD_LOCK.replace("    sys.stdin.read()\n", "")
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
