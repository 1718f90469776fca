"""Run a whole project in a temporary folder as a user would: by its command line, in child processes.

The home folder of every child is empty, CI is not set, and variables that winnow sets in the environment of the tests
are removed: tests see what a new user gets.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from tasks.project.environment import ROOT_VARIABLE, default_variables
from tests.closure import ROOT
from tests.conftest import CLASSES, draw, tiny_params

if TYPE_CHECKING:
    from tests.integration.running import RunningProject

NEVER_DUE = "0 0 29 2 *"  # 29 February
CODE = (
    *("winnow", "tasks", "flows", "data", "mlflow"),
    *(".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "prefect.yaml"),
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of the finished project in the worker that created it; give slow tiers more time."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("finished"))
        if item.get_closest_marker("slow") or item.get_closest_marker("services"):
            item.add_marker(pytest.mark.timeout(1800))
        elif "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1500))  # the first of them runs the whole chain


@dataclass(frozen=True)
class Project:
    """A checkout with tiny images and tiny params."""

    root: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """Further variables of its shell."""

    def environment(self) -> dict[str, str]:
        """Return the environment of a new user's shell, with the tests' Python first in PATH."""
        set_by_winnow = default_variables(Path(os.environ[ROOT_VARIABLE]))
        inherited = {name: value for name, value in os.environ.items() if name not in set_by_winnow}
        path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")])
        variables = {"HOME": str(self.home), "PATH": path, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        return {**inherited, **variables, **self.variables}

    def call(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a command in the project."""
        return subprocess.run(
            arguments,
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def winnow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `winnow ...` with the code of the project."""
        return self.call(sys.executable, "-m", "winnow.cli.main", *arguments)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `dvc ...`."""
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def set_params(self, params: dict) -> None:
        """Write params.yaml."""
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def copy(self, root: Path) -> Project:
        """Copy the project with its artifacts and caches, but without MLflow's store and what was promoted."""
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "promoted.json"))
        return replace(self, root=root)


def make_project(root: Path, home: Path) -> Project:
    """Write the code of this checkout, 60 images of each of three classes, 20 without label, and `run_params`."""
    home.mkdir()
    for name in CODE:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.tar.xz"))
        else:
            shutil.copy(source, target)
    _disable_schedules(root / "prefect.yaml")
    write_photos(root / "photos", (20, 24), "png")
    project = Project(root, home)
    project.set_params(run_params())
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(
            ["git", "-c", "user.name=Tests", "-c", "user.email=tests@localhost", *command], cwd=root, check=True
        )
    return project


def write_photos(root: Path, size: tuple[int, int], suffix: str) -> None:
    """Write 60 images of each class and 20 without a label; `size`: (height, width)."""
    rng = np.random.default_rng(3)
    for label, name in enumerate((*CLASSES, "unlabelled")):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(60 if label < len(CLASSES) else 20):
            Image.fromarray(draw(label % len(CLASSES), size, rng)).save(folder / f"{index:02d}.{suffix}")


def _disable_schedules(schedules: Path) -> None:
    """Replace all schedules, so that runs start only when a test starts them."""
    schedules.write_text(re.sub(r'cron: "[^"]+"', f'cron: "{NEVER_DUE}"', schedules.read_text()))


def run_params() -> dict:
    """Return `tiny_params` with fewer candidates and gates that int8 files of a tiny network can pass."""
    params = tiny_params()
    for name in ("student", "student-alone", "dense-kd"):
        del params["candidates"][name]
    params["promotion"] |= {
        "gates": {
            "max_drop_points": 20.0,
            "max_macro_f1_drop_points": 30.0,
            "min_agreement": 0.5,
            "max_size_ratio": 0.5,
            "min_speedup": 0.01,
        }
    }
    params["refit"] = {"when": "auto"}
    return params


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, subprocess.CompletedProcess[str]]]:
    """Return a project after its first `winnow run`, and the result of that. Copy it before changing it.

    Several workers share one: the first creates it, which takes minutes, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    project, result_file = Project(folder / "checkout", folder / "home"), folder / "run.json"
    with FileLock(f"{folder}.lock"):
        if not result_file.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by a worker that failed
            folder.mkdir()
            make_project(project.root, project.home)
            result = project.winnow("run")
            result_file.write_text(json.dumps([result.args, result.returncode, result.stdout, result.stderr]))
    yield project, subprocess.CompletedProcess(*json.loads(result_file.read_text()))
    assert list(project.home.iterdir()) == [], "a command of a later test wrote into the home folder"


@pytest.fixture
def project(finished: tuple[Project, object], tmp_path: Path) -> Project:
    """Return a copy of the finished project that a test may change."""
    return finished[0].copy(tmp_path / "copy")


@pytest.fixture
def clean_project(tmp_path: Path) -> Project:
    """Return a project in which nothing has run."""
    return make_project(tmp_path / "checkout", tmp_path / "home")


@pytest.fixture(scope="module")
def running(finished: tuple[Project, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProject]:
    """Return a copy of the finished project with running servers and worker."""
    from tests.integration.running import start, stop

    started = start(finished[0].copy(tmp_path_factory.mktemp("up") / "copy"))
    yield started
    stop(started.process)
