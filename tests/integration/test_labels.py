"""Run `winnow label` on a finished project, and on one whose settings have changed."""

from __future__ import annotations

import csv

import yaml

from tests.integration.conftest import Project


def test_label_commands_need_current_images(project: Project) -> None:
    suggested = project.winnow("label", "suggest", "3")
    assert suggested.returncode == 0, suggested.stdout + suggested.stderr
    with (project.root / "suggested.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    (project.root / "suggested.csv").unlink()
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["data"]["validation_fraction"] = 0.3
    project.set_params(params)
    for command in (("suggest", "3"), ("check",)):
        refused = project.winnow("label", *command)
        assert refused.returncode == 2
        assert "artifacts/data does not hold the images and labels of params.yaml" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (project.root / "suggested.csv").exists()
