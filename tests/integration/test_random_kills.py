"""Kill whole runs with kill -9 at random moments: the next `winnow run` ends as if nothing had happened.

The moments come from SEED: one in each step and in the promotion, the others anywhere, in random order. Every second
kill ends the run alone, as a lack of memory does; the others end all its processes at once. Each takes about five
minutes; WINNOW_KILLS=20 sets their number instead of two.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.integration.conftest import Project, make_project
from tests.integration.running import run_log, start_run
from winnow.records import sha256_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]

SEED, MAX_KILLS = 20261129, 20
KILLS = int(os.environ.get("WINNOW_KILLS", "2"))
MAX_ATTEMPTS = 5
"""A run that is faster than the measured one may end before it is killed."""
AFTER_LAST_STEP = "promote"
"""Name of the promotion after the last step."""
TIMED_OUTPUTS = ("benchmark", "select", "report")
"""Outputs with timings, which differ between runs."""

STATES = """
import json, sqlite3, sys
from pathlib import Path
from tasks.project.paths import ProjectPaths

state_dir = ProjectPaths(Path.cwd()).state_dir
query = lambda file, text: [row[0] for row in sqlite3.connect(state_dir / file).execute(text)]
json.dump({
    "prefect": query("prefect/prefect.db", "select state_type from flow_run"),
    "mlflow": query("mlflow/mlflow.db", "select status from runs"),
    "versions": query("mlflow/mlflow.db", "select version from model_versions"),
    "champion": query("mlflow/mlflow.db", "select version from registered_model_aliases where alias = 'champion'"),
}, sys.stdout)
"""


@dataclass(frozen=True)
class Span:
    """A step of a run, in seconds from its start."""

    step: str
    begin: float
    end: float


def current_step(project: Project) -> str:
    """Return the current step of the run, "" between two steps."""
    try:
        text = (project.root / ".winnow" / "run.step").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text.partition(" ")[2]


def new_project(folder: Path) -> Project:
    """Return a project with one candidate, so that the winner does not depend on timings."""
    folder.mkdir()
    project = make_project(folder / "checkout", folder / "home")
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["candidates"] = {"dense-int8": params["candidates"]["dense-int8"]}
    project.set_params(params)
    return project


def run_and_measure(project: Project) -> list[Span]:
    """Run to the end and return the time span of each step."""
    run, start, spans, previous, begin = start_run(project), time.monotonic(), [], "", 0.0
    while run.poll() is None:
        elapsed, step = time.monotonic() - start, current_step(project)
        if step != previous:
            if previous:
                spans.append(Span(previous, begin, elapsed))
            previous, begin = step, elapsed
        time.sleep(0.02)
    assert run.returncode == 0, run_log(project).read_text()
    return [*spans, Span(AFTER_LAST_STEP, spans[-1].end, time.monotonic() - start)]


def artifact_digests(project: Project) -> dict[str, str]:
    """Return the sha256 of every artifact without timings."""
    artifacts = project.root / "artifacts"
    return {
        str(path.relative_to(artifacts)): sha256_of(path)
        for path in sorted(artifacts.rglob("*"))
        if path.is_file()
        and path.relative_to(artifacts).parts[0] not in TIMED_OUTPUTS
        and path.name not in ("record.json", "curves.json", "card.json")
    }


def file_names(project: Project) -> set[str]:
    """Return all files outside caches and logs, except logits of the fastest runtimes, which depend on timings."""
    paths = {path.relative_to(project.root) for path in project.root.rglob("*") if path.is_file()}
    project_files = {
        path for path in paths if path.parts[0] in ("artifacts", ".winnow") and not CACHES & set(path.parts)
    }
    return {
        str(path) for path in project_files if path.parts[:2] != ("artifacts", "benchmark") or path.suffix != ".npy"
    }


CACHES = {"cache", "mlflow", "prefect", "logs", "__pycache__", "versions", "answers"}


def project_processes(project: Project) -> list[psutil.Process]:
    """Return the processes that work in the project."""
    processes, root = [], str(project.root)
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if process.info["cwd"] == root or any(root in argument for argument in process.info["cmdline"] or ()):
            processes.append(process)
    return processes


def wait_until_gone(project: Project, seconds: float) -> float:
    """Wait until no process works in the project and return the seconds."""
    start = time.monotonic()
    while remaining := project_processes(project):
        assert time.monotonic() - start < seconds, [process.cmdline() for process in remaining]
        time.sleep(0.1)
    return time.monotonic() - start


def kill_within(project: Project, span: Span, share: float, at_once: bool) -> str:
    """Kill a run within a step; return the step that it was in, or "" if it had ended."""
    run, report_seen = start_run(project), False
    deadline = time.monotonic() + 600
    while run.poll() is None and time.monotonic() < deadline:
        step = current_step(project)
        if step == span.step or (span.step == AFTER_LAST_STEP and report_seen and not step):
            break
        report_seen = report_seen or step == "report"
        time.sleep(0.01)
    time.sleep(share * (span.end - span.begin))
    if run.poll() is not None:
        return ""
    position = current_step(project) or f"after {span.step}"
    for process in [*(psutil.Process(run.pid).children(recursive=True) if at_once else []), psutil.Process(run.pid)]:
        process.kill()
    run.wait()
    return position


def is_free(path: Path) -> bool:
    """Return whether no process holds this lock."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[Span]]:
    """Return a project after an uninterrupted run, and the spans of its steps."""
    project = new_project(tmp_path_factory.mktemp("whole") / "whole")
    return project, run_and_measure(project)


def kill_moments(spans: list[Span]) -> list[tuple[Span, float, bool]]:
    """Return (step, elapsed share of it, whether all processes are killed at once) of all MAX_KILLS kills."""
    rng = np.random.default_rng(SEED)
    seconds = np.array([span.end - span.begin for span in spans])
    further_indices = rng.choice(len(spans), MAX_KILLS - len(spans), p=seconds / seconds.sum())
    order = rng.permutation([*range(len(spans)), *further_indices])
    return [(spans[index], float(rng.random()), number % 2 == 1) for number, index in enumerate(order)]


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment_a_run_ends_as_if_it_had_not_been(
    uninterrupted: tuple[Project, list[Span]], tmp_path: Path, number: int
) -> None:
    reference, spans = uninterrupted
    expected, expected_files = artifact_digests(reference), file_names(reference)
    assert any(name.endswith("model.onnx") for name in expected)
    span, share, at_once = kill_moments(spans)[number]
    for attempt in range(MAX_ATTEMPTS):
        project = new_project(tmp_path / str(attempt))
        if position := kill_within(project, span, share * 0.5**attempt, at_once):
            break
    assert position, f"{MAX_ATTEMPTS} runs ended before they were killed in {span.step}"
    wait_seconds = wait_until_gone(project, 120)
    start = time.monotonic()
    result = project.winnow("run")
    seconds = time.monotonic() - start
    assert result.returncode == 0, (position, result.stderr)
    wait_until_gone(project, 30)
    assert artifact_digests(project) == expected, position
    assert file_names(project) == expected_files, position
    assert all(is_free(path) for path in (project.root / ".winnow").glob("*.lock"))
    states = json.loads(project.call(sys.executable, "-c", STATES).stdout)
    assert set(states["prefect"]) <= {"COMPLETED", "CRASHED"}, position
    assert set(states["mlflow"]) <= {"FINISHED", "FAILED"}, position
    assert states["champion"] == states["versions"], (position, states)
    assert len(states["versions"]) == 1, (position, states)
    scope = "all" if at_once else "the run"
    entry = f"kill {number}: {scope} at {position}; gone after {wait_seconds:.1f} s; the next run took {seconds:.0f} s"
    with (tmp_path.parent / "kills.txt").open("a") as table:  # one line per kill, from any worker
        table.write(f"{entry} (a whole one {spans[-1].end:.0f} s)\n")
    shutil.rmtree(tmp_path)
