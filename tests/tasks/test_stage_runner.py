from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tasks import stage_runner
from tasks.project.paths import ProjectPaths


@pytest.mark.thorough
def test_a_stop_ends_one_run_and_not_the_next_in_the_same_process(tmp_path: Path) -> None:
    paths, log = ProjectPaths(tmp_path), logging.getLogger("test")
    stage_runner.stop_running("first")
    with pytest.raises(stage_runner.StageFailed, match="ingest was not begun: the run was stopped"):
        stage_runner._stream(paths, "ingest", "ingest", ("first", "step"), log)
    with pytest.raises(stage_runner.StageFailed) as exc_info:  # started: DVC itself finds no project
        stage_runner._stream(paths, "ingest", "ingest", ("second", "step"), log)
    assert "not begun" not in str(exc_info.value)
    assert "not inside of a DVC repository" in str(exc_info.value)
