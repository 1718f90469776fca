"""A project whose steps have records without content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.project.paths import ProjectPaths
from tests.closure import ROOT
from tests.records import make_record, pretrain_details
from winnow.records import write_record


def write_step_record(folder: Path, number: float = 0.0) -> None:
    """Write a record whose content does not matter except for its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, make_record("pretrain", pretrain_details(), metrics={"x": number}))


@pytest.fixture
def project(tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path)
    for name in ("data", "embed", "pretrain", "candidates/dense", "candidates/pruned"):
        write_step_record(paths.artifacts / name)
    (tmp_path / "mine.pth").write_bytes(b"weights")
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copytree(ROOT / "winnow", tmp_path / "winnow", ignore=shutil.ignore_patterns("__pycache__"))
    return paths
