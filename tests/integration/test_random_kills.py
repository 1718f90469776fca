"""kill -9 at random moments of whole runs: the next `winnow run` ends as if nothing had happened.

The moments come from SEED: one in each step and in the promotion, the others anywhere, in random order. Every second
kill ends the run alone, as a lack of memory does; the others end all that belongs to it at once. Each takes about five
minutes; WINNOW_KILLS=20 says how many there are in place of two.
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
from tests.integration.running import begun_by_hand, run_log
from winnow.records import sha256_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6000)]

SEED, ALL = 20261129, 20
KILLS = int(os.environ.get("WINNOW_KILLS", "2"))
TRIES = 5
"""A run may end before it is killed: it was faster than the one that was measured."""
END = "promote"
"""What a run does after its last step."""
MEASURED = ("benchmark", "select", "report")
"""Outputs that hold times, which differ from run to run."""

STATES = """
import json, sqlite3, sys
from pathlib import Path
from tasks.project.paths import ProjectPaths

hidden = ProjectPaths(Path.cwd()).state_dir
ask = lambda file, text: [row[0] for row in sqlite3.connect(hidden / file).execute(text)]
json.dump({
    "prefect": ask("prefect/prefect.db", "select state_type from flow_run"),
    "mlflow": ask("mlflow/mlflow.db", "select status from runs"),
    "versions": ask("mlflow/mlflow.db", "select version from model_versions"),
    "champion": ask("mlflow/mlflow.db", "select version from registered_model_aliases where alias = 'champion'"),
}, sys.stdout)
"""


@dataclass(frozen=True)
class Span:
    """A step of a run, in seconds from its start."""

    step: str
    begin: float
    end: float


def step_of(project: Project) -> str:
    """What the run is at; "" between two steps."""
    try:
        text = (project.root / ".winnow" / "run.step").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text.partition(" ")[2]


def new_project(folder: Path) -> Project:
    """One candidate beside the dense one, so that the same one wins whatever the times are."""
    folder.mkdir()
    project = make_project(folder / "checkout", folder / "home")
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["candidates"] = {"dense-int8": params["candidates"]["dense-int8"]}
    project.set_params(params)
    return project


def spans_of(project: Project) -> list[Span]:
    """Run to the end, and when each step was at work."""
    run, start, spans, last, begin = begun_by_hand(project), time.monotonic(), [], "", 0.0
    while run.poll() is None:
        now, step = time.monotonic() - start, step_of(project)
        if step != last:
            if last:
                spans.append(Span(last, begin, now))
            last, begin = step, now
        time.sleep(0.02)
    assert run.returncode == 0, run_log(project).read_text()
    return [*spans, Span(END, spans[-1].end, time.monotonic() - start)]


def digests(project: Project) -> dict[str, str]:
    """sha256 of every artifact in which no times are."""
    artifacts = project.root / "artifacts"
    return {
        str(path.relative_to(artifacts)): sha256_of(path)
        for path in sorted(artifacts.rglob("*"))
        if path.is_file()
        and path.relative_to(artifacts).parts[0] not in MEASURED
        and path.name not in ("record.json", "curves.json", "card.json")
    }


def names(project: Project) -> set[str]:
    """Every file that is no entry of a cache or a log; answers of the runtimes that were fastest differ by times."""
    left = {path.relative_to(project.root) for path in project.root.rglob("*") if path.is_file()}
    kept = {path for path in left if path.parts[0] in ("artifacts", ".winnow") and not CACHES & set(path.parts)}
    return {str(path) for path in kept if path.parts[:2] != ("artifacts", "benchmark") or path.suffix != ".npy"}


CACHES = {"cache", "mlflow", "prefect", "logs", "__pycache__", "versions", "answers"}


def below(project: Project) -> list[psutil.Process]:
    """Processes that work in the project."""
    found, root = [], str(project.root)
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if process.info["cwd"] == root or any(root in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def until_gone(project: Project, seconds: float) -> float:
    """Seconds until nothing works in the project."""
    start = time.monotonic()
    while left := below(project):
        assert time.monotonic() - start < seconds, [process.cmdline() for process in left]
        time.sleep(0.1)
    return time.monotonic() - start


def killed(project: Project, span: Span, share: float, at_once: bool) -> str:
    """Kill a run within a step of it; the step in which it was, or "" where it had ended."""
    run, seen = begun_by_hand(project), False
    last = time.monotonic() + 600
    while run.poll() is None and time.monotonic() < last:
        step = step_of(project)
        if step == span.step or (span.step == END and seen and not step):
            break
        seen = seen or step == "report"
        time.sleep(0.01)
    time.sleep(share * (span.end - span.begin))
    if run.poll() is not None:
        return ""
    at = step_of(project) or f"after {span.step}"
    for process in [*(psutil.Process(run.pid).children(recursive=True) if at_once else []), psutil.Process(run.pid)]:
        process.kill()
    run.wait()
    return at


def is_free(path: Path) -> bool:
    """Whether nobody holds this lock."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[Span]]:
    """A project whose run nobody killed, and when its steps were at work."""
    project = new_project(tmp_path_factory.mktemp("whole") / "whole")
    return project, spans_of(project)


def moments(spans: list[Span]) -> list[tuple[Span, float, bool]]:
    """(step, share of it that is over, whether all is killed at once) of ALL kills."""
    rng = np.random.default_rng(SEED)
    seconds = np.array([span.end - span.begin for span in spans])
    others = rng.choice(len(spans), ALL - len(spans), p=seconds / seconds.sum())
    chosen = rng.permutation([*range(len(spans)), *others])
    return [(spans[index], float(rng.random()), number % 2 == 1) for number, index in enumerate(chosen)]


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment_a_run_ends_as_if_it_had_not_been(
    whole: tuple[Project, list[Span]], tmp_path: Path, number: int
) -> None:
    reference, spans = whole
    expected, files = digests(reference), names(reference)
    assert any(name.endswith("model.onnx") for name in expected)
    span, share, at_once = moments(spans)[number]
    for attempt in range(TRIES):
        project = new_project(tmp_path / str(attempt))
        if at := killed(project, span, share * 0.5**attempt, at_once):
            break
    assert at, f"{TRIES} runs ended before they were killed in {span.step}"
    tidied = until_gone(project, 120)
    begin = time.monotonic()
    again = project.winnow("run")
    seconds = time.monotonic() - begin
    assert again.returncode == 0, (at, again.stderr)
    until_gone(project, 30)
    assert digests(project) == expected, at
    assert names(project) == files, at
    assert all(is_free(path) for path in (project.root / ".winnow").glob("*.lock"))
    states = json.loads(project.call(sys.executable, "-c", STATES).stdout)
    assert set(states["prefect"]) <= {"COMPLETED", "CRASHED"}, at
    assert set(states["mlflow"]) <= {"FINISHED", "FAILED"}, at
    assert states["champion"] == states["versions"], (at, states)
    assert len(states["versions"]) == 1, (at, states)
    who = "all" if at_once else "the run"
    told = f"kill {number}: {who} at {at}; gone after {tidied:.1f} s; the next run took {seconds:.0f} s"
    with (tmp_path.parent / "kills.txt").open("a") as table:  # one line each, of whichever worker
        table.write(f"{told} (a whole one {spans[-1].end:.0f} s)\n")
    shutil.rmtree(tmp_path)
