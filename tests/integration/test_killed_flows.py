"""What Prefect's pages say of a run that was killed together with all that looks after it."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import pytest

from tests.integration.conftest import Project

FLOW = """
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
def test_the_next_run_closes_what_was_killed_with_its_watchdog(fresh: Project) -> None:
    assert fresh.call(sys.executable, "-c", FLOW, "dies").returncode == -9
    assert (fresh.root / ".winnow" / "prefect-run.json").is_file()
    ended = fresh.call(sys.executable, "-c", FLOW, "ends")
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(fresh.root / ".winnow" / "prefect" / "prefect.db")) as database:
        states = [row[0] for row in database.execute("select state_type from flow_run order by created")]
    assert states == ["CRASHED", "COMPLETED"]
    assert not (fresh.root / ".winnow" / "prefect-run.json").exists()
