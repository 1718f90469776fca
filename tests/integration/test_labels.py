"""Run `winnow label` on a finished project, in one of its folders, and after its settings have changed."""

from __future__ import annotations

import csv
import subprocess
import sys

import yaml

from tests.integration.conftest import Project


def test_label_commands_need_current_images(project: Project) -> None:
    suggested = project.winnow("label", "suggest", "3")
    assert suggested.returncode == 0, suggested.stdout + suggested.stderr
    with (project.root / "suggested.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    for name in ("suggested.csv", "suggested.png"):
        (project.root / name).unlink()
    _write_into_current_folder(project)
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["data"]["validation_fraction"] = 0.3
    project.set_params(params)
    for command in (("suggest", "3"), ("check",)):
        refused = project.winnow("label", *command)
        assert refused.returncode == 2
        assert "artifacts/data does not hold the images and labels of params.yaml" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (project.root / "suggested.csv").exists()


def _write_into_current_folder(project: Project) -> None:
    folder = project.root / "elsewhere"
    folder.mkdir()
    command = [sys.executable, "-m", "winnow.cli.main", "label", "suggest", "2", "--method", "k-center"]
    environment = project.environment()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("suggested.csv", "suggested.png"):
        assert not (project.root / name).exists()
        assert (folder / name).is_file()
