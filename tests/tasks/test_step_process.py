from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from tasks import stage_runner, step_process
from tasks.project.paths import ProjectPaths
from tasks.step_fingerprint import step_fingerprint
from tasks.tracking import mlflow_runs
from tests.closure import ROOT
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
        step_process.run_step(config, project, "pretrain", "pretrain")
    assert sorted(project.checkpoints.iterdir()) == sorted([current, other])


@pytest.mark.parametrize("weights", ["data/weights/mien.safetensors", "models:/birds@champion"])
def test_missing_weights_end_a_step_with_one_message(project: ProjectPaths, tiny_data: Path, weights: str) -> None:
    shutil.rmtree(project.artifacts / "data")
    shutil.copytree(tiny_data, project.artifacts / "data")
    params = tiny_params() | {"teacher": {"weights": weights, "backbone": "resnet50"}}
    (project.root / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "tasks", "embed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert weights in ended.stderr
    assert "Traceback" not in ended.stderr


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
    stage_runner._follow(project, "pretrain", ("execution", "run"), ended, logging.getLogger(__name__))
    assert logged == ["b"]
