"""Test the state in Prefect of a run that was killed together with its watchdog."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import pytest

from tests.integration.conftest import Project

SHORT_FLOW = """
import os, signal, sys
from pathlib import Path
from tasks.project.environment import apply
from tasks.project.paths import ProjectPaths

apply(Path.cwd())
from tasks.project import running_servers

running_servers.report_to_prefect(ProjectPaths(Path.cwd()))
import psutil
from prefect import flow
import flows.runtime

@flow
def short():
    with flows.runtime.locked_project("."):
        if sys.argv[1] == "dies":
            for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
                process.kill()

short()
"""


@pytest.mark.thorough
def test_the_next_run_closes_a_run_killed_with_its_watchdog(clean_project: Project) -> None:
    assert clean_project.call(sys.executable, "-c", SHORT_FLOW, "dies").returncode == -9
    assert (clean_project.root / ".winnow" / "prefect-run.json").is_file()
    ended = clean_project.call(sys.executable, "-c", SHORT_FLOW, "ends")
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(clean_project.root / ".winnow" / "prefect" / "prefect.db")) as database:
        states = [row[0] for row in database.execute("select state_type from flow_run order by created")]
    assert states == ["CRASHED", "COMPLETED"]
    assert not (clean_project.root / ".winnow" / "prefect-run.json").exists()
