from __future__ import annotations

import os
import threading

import pytest

from tasks import __main__, stage_runner
from tasks.project.paths import ProjectPaths
from tasks.step_fingerprint import step_fingerprint
from tasks.tracking import mlflow_runs
from tests.conftest import tiny_params
from tests.records import embed_details, make_record
from winnow.config import check_config
from winnow.errors import ArtifactError
from winnow.records import write_record


def test_outdated_checkpoints_are_removed_before_the_step_runs(project: ProjectPaths) -> None:
    config = check_config(tiny_params() | {"pretrain": {"method": "none"}})
    (project.artifacts / "embed").mkdir(exist_ok=True)
    write_record(project.artifacts / "embed", make_record("embed", embed_details()))
    current = project.checkpoints / f"pretrain-{step_fingerprint(config, project, 'pretrain', 'pretrain')}"
    outdated, other = project.checkpoints / f"pretrain-{'0' * 16}", project.checkpoints / f"pruned-{'0' * 16}"
    for folder in (current, outdated, other):
        folder.mkdir(parents=True)
    with pytest.raises(ArtifactError):  # there are no images
        __main__.run_step(config, project, "pretrain", "pretrain")
    assert sorted(project.checkpoints.iterdir()) == sorted([current, other])


def test_curves_of_earlier_runs_are_not_logged(project: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(mlflow_runs, "log_curves", lambda *arguments: logged.append(arguments[2][0]["from"]))
    for digest, age in (("a" * 16, 100), ("b" * 16, -100)):
        path = project.checkpoints / f"pretrain-{digest}" / "pretrain.curves.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"epoch": 1, "from": "{digest[0]}"}}\n')
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    ended = threading.Event()
    ended.set()
    stage_runner._follow(project, "pretrain", "run", ended)
    assert logged == ["b"]
