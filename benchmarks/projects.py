"""Clones of this project in which a benchmark calls `winnow`, as a user would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.chain import ROOT
from tasks.project.environment import process_environment


def clone_project(project: Path, revision: str = "HEAD") -> None:
    """Replace the folder `project` by a clone at this revision: nothing in it is up to date."""
    shutil.rmtree(project, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    subprocess.run(["git", "checkout", "-q", revision], cwd=project, check=True)


def call_winnow(project: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Call the `winnow` of a clone in its folder. `options`: of `subprocess.run`.

    Raises subprocess.CalledProcessError where the command fails.
    """
    command = [sys.executable, "-m", "winnow.cli.main", *arguments]
    environment = process_environment(project) | options.pop("env", {})
    return subprocess.run(command, cwd=project, env=environment, check=True, **options)
