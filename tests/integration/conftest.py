"""A whole project in a temporary folder, run as a person would: by its command line, in child processes.

The home folder of every child is an empty one, CI is not set, and nothing of the tests' own environment that winnow
sets is handed on: what is tested is what a newcomer gets.
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
    from tests.integration.running import Up

NEVER_DUE = "0 0 29 2 *"  # 29 February
CODE = (
    *("winnow", "tasks", "flows", "data", "mlflow"),
    *(".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "prefect.yaml"),
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers: the one that has made the finished project runs every test of it. The slow tiers have long."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("finished"))
        if item.get_closest_marker("slow") or item.get_closest_marker("services"):
            item.add_marker(pytest.mark.timeout(1800))
        elif "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1500))  # the first of them waits for a whole run


@dataclass(frozen=True)
class Project:
    """A checkout with tiny images and tiny params."""

    root: Path
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """What its shell holds besides."""

    def environment(self) -> dict[str, str]:
        """What a newcomer's shell holds, with our environment's python first."""
        set_by_winnow = default_variables(Path(os.environ[ROOT_VARIABLE]))
        kept = {name: value for name, value in os.environ.items() if name not in set_by_winnow}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        ours = {"HOME": str(self.home), "PATH": path, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        return {**kept, **ours, **self.variables}

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
        """Run `winnow ...`, whose code is the project's own."""
        return self.call(sys.executable, "-m", "winnow.cli.main", *arguments)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `dvc ...`."""
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def set_params(self, params: dict) -> None:
        """Write params.yaml."""
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def copy(self, root: Path) -> Project:
        """The same project elsewhere, with its artifacts and caches. MLflow's store knows its own folder and stays."""
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "promoted.json"))
        return replace(self, root=root)


def make_project(root: Path, home: Path) -> Project:
    """The code of this checkout, three learnable classes of 60 images, 20 without label, and `run_params`."""
    home.mkdir()
    for name in CODE:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.tar.xz"))
        else:
            shutil.copy(source, target)
    _never_due(root / "prefect.yaml")
    rng = np.random.default_rng(3)
    for label, name in enumerate((*CLASSES, "unlabelled")):
        folder = root / "photos" / name
        folder.mkdir(parents=True)
        for index in range(60 if label < len(CLASSES) else 20):
            Image.fromarray(draw(label % len(CLASSES), (20, 24), rng)).save(folder / f"{index:02d}.png")
    project = Project(root, home)
    project.set_params(run_params())
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(
            ["git", "-c", "user.name=Tests", "-c", "user.email=tests@localhost", *command], cwd=root, check=True
        )
    return project


def _never_due(schedules: Path) -> None:
    """A test says when a run is due: the hour of the day must not."""
    schedules.write_text(re.sub(r'cron: "[^"]+"', f'cron: "{NEVER_DUE}"', schedules.read_text()))


def run_params() -> dict:
    """`tiny_params` with a smaller tree and gates that the int8 files of a learnable toy can pass."""
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
    """A project after its first `winnow run`, and what that printed. Not to be changed: copy it first.

    Several workers share one: the first makes it, which takes minutes, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    project, kept = Project(folder / "checkout", folder / "home"), folder / "run.json"
    with FileLock(f"{folder}.lock"):
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make_project(project.root, project.home)
            result = project.winnow("run")
            kept.write_text(json.dumps([result.args, result.returncode, result.stdout, result.stderr]))
    yield project, subprocess.CompletedProcess(*json.loads(kept.read_text()))
    assert list(project.home.iterdir()) == [], "a command of a later test wrote into the home folder"


@pytest.fixture
def project(finished: tuple[Project, object], tmp_path: Path) -> Project:
    """A copy of the finished project, to be changed."""
    return finished[0].copy(tmp_path / "copy")


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A project in which nothing has run."""
    return make_project(tmp_path / "checkout", tmp_path / "home")


@pytest.fixture(scope="module")
def up(finished: tuple[Project, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A copy of the finished project whose servers and worker run."""
    from tests.integration.running import start, stop

    running = start(finished[0].copy(tmp_path_factory.mktemp("up") / "copy"))
    yield running
    stop(running.process)
