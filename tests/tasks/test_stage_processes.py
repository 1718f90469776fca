from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tasks import stage_processes
from tasks.project.paths import ProjectPaths
from tasks.stage_processes import PRELOAD_VARIABLE, ForkedStage, StageProcess, preloaded, start_stage
from tasks.versioning.dvc_stages import parse_outcome
from tests.closure import ROOT
from tests.conftest import tiny_params, write_folder

pytestmark = pytest.mark.thorough
STAGES = """
stages:
  ingest:
    cmd: python -m tasks ingest
    deps: [photos]
    params: [data]
    outs: [artifacts/data]
  pretrain:
    cmd: python -m tasks pretrain
    deps: [artifacts/data]
    params: [pretrain]
    outs: [artifacts/pretrain]
  wrong:
    cmd: python -m tasks candidate nobody
  alone:
    cmd: python -c "import os; print('in', os.environ['WINNOW_STARTED_BY'])"
"""


@pytest.fixture
def chain(project: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a project with photographs, two real steps, and a pretraining that does not end by itself."""
    root = project.root
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.rmtree(project.artifacts)
    write_folder(root / "photos")
    params = tiny_params()
    params["pretrain"]["epochs"] = 50_000
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "dvc.yaml").write_text(STAGES)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=root, check=True)
    return root


@contextlib.contextmanager
def ready(root: Path) -> Iterator[psutil.Process]:
    """Wait for the preloaded process of a project, and yield it."""
    with preloaded(root):
        process = stage_processes._preloaded[root]
        deadline = time.monotonic() + 120
        while not process.is_ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield psutil.Process(process.pid)


def run(root: Path, stage: str) -> tuple[int, list[str]]:
    started = start_stage(root, stage)
    assert isinstance(started, ForkedStage)
    return started.wait(), read_lines(started)


def read_lines(stage: StageProcess) -> list[str]:
    assert stage.stdout is not None
    return stage.stdout.read().splitlines()


def begin_training(root: Path) -> ForkedStage:
    """Start the pretraining, and return its stage once it trains."""
    assert run(root, "ingest")[0] == 0
    stage = start_stage(root, "pretrain")
    assert isinstance(stage, ForkedStage)
    assert stage.stdout is not None
    next(line for line in stage.stdout if line.startswith("epoch "))
    return stage


def find_step(server: psutil.Process) -> psutil.Process:
    """Return the process of the step: the one that computes."""
    return max(server.children(recursive=True), key=lambda process: sum(process.cpu_times()[:2]))


def test_a_step_runs_in_a_fork_as_in_a_process_of_its_own(chain: Path) -> None:
    with ready(chain) as server:
        status, lines = run(chain, "ingest")
        assert status == 0, lines
        assert parse_outcome(lines) == "ran"
        forked = (chain / "dvc.lock").read_text()
        assert parse_outcome(run(chain, "ingest")[1]) == "unchanged"
        shutil.rmtree(chain / "artifacts")
        assert parse_outcome(run(chain, "ingest")[1]) == "restored"
        assert server.children() == []
    assert not server.is_running()
    for path in (chain / "artifacts", chain / ".dvc" / "cache", chain / ".dvc" / "tmp"):
        shutil.rmtree(path, ignore_errors=True)
    (chain / "dvc.lock").unlink()
    alone = start_stage(chain, "ingest")
    assert not isinstance(alone, ForkedStage)
    assert alone.wait() == 0
    assert (chain / "dvc.lock").read_text() == forked


def test_an_error_of_the_user_has_the_status_and_message_of_the_step(chain: Path) -> None:
    with ready(chain):
        assert run(chain, "ingest")[0] == 0
        status, lines = run(chain, "wrong")
    assert status != 0
    assert any("exited with 2" in line for line in lines), lines
    assert any(line.startswith("error: ") and "nobody" in line for line in lines), lines
    assert not any("Traceback" in line for line in lines)


def test_a_command_that_is_no_step_runs_as_ever(chain: Path) -> None:
    with ready(chain):
        status, lines = run(chain, "alone")
    assert status == 0
    assert any(line.startswith(f"in {os.getpid()}@") for line in lines), lines


def test_a_killed_step_dies_alone(chain: Path) -> None:
    with ready(chain) as server:
        stage = begin_training(chain)
        find_step(server).kill()
        assert stage.wait(timeout=60) != 0
        # DVC's command line, or the shell that started the step: it depends on the shell which of them sees the signal.
        assert re.search(r"exited with (-9|137)\b", "\n".join(read_lines(stage)))
        assert server.is_running()
        assert parse_outcome(run(chain, "ingest")[1]) == "unchanged"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_stopping_a_stage_ends_all_of_its_processes(chain: Path, sent: signal.Signals) -> None:
    with ready(chain) as server:
        stage = begin_training(chain)
        processes = server.children(recursive=True)
        os.killpg(stage.pid, sent)
        assert stage.wait(timeout=60) != 0
        assert psutil.wait_procs(processes, timeout=10)[1] == []
        assert not list((chain / "artifacts").glob("pretrain*"))
        assert parse_outcome(run(chain, "ingest")[1]) == "unchanged"


def test_the_end_of_dvc_s_command_ends_the_step(chain: Path) -> None:
    with ready(chain) as server:
        stage = begin_training(chain)
        processes = server.children(recursive=True)
        next(process for process in processes if "tasks" in process.cmdline()).kill()
        assert stage.wait(timeout=60) != 0
        assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_without_the_preloaded_process_stages_start_as_ever(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ready(chain) as server:
        server.kill()
        server.wait()
        stage = start_stage(chain, "ingest")
        assert isinstance(stage, subprocess.Popen)
        assert stage.wait() == 0
    with preloaded(chain):
        assert isinstance(early := start_stage(chain, "ingest"), subprocess.Popen)  # it still imports
        assert early.wait() == 0
    monkeypatch.setenv(PRELOAD_VARIABLE, "0")
    with preloaded(chain):
        assert stage_processes._preloaded == {}


def test_edited_code_is_not_run_from_memory(chain: Path) -> None:
    with ready(chain):
        assert run(chain, "ingest")[0] == 0
        with (chain / "winnow" / "steps" / "pretrain.py").open("a") as edited:
            edited.write("raise SystemExit(3)\n")
        stage = start_stage(chain, "pretrain")
        assert isinstance(stage, subprocess.Popen)
        assert stage.wait() != 0
        assert "exited with 3" in "\n".join(read_lines(stage))


def test_waiting_for_a_stage_ends_after_its_timeout(chain: Path) -> None:
    with ready(chain):
        stage = begin_training(chain)
        with pytest.raises(subprocess.TimeoutExpired):
            stage.wait(timeout=0.1)
        os.killpg(stage.pid, signal.SIGTERM)
        assert stage.wait() == stage.wait() != 0
