"""Compare `winnow run` and `dvc repro`: each kind of change makes the same stages stale, with the same results."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tasks.versioning.dvc_stages import propagate_changes
from tests.integration.conftest import Project
from winnow.config import load_config

pytestmark = pytest.mark.thorough

LAST_STEPS = {"benchmark", "select", "refit", "report"}
COMPRESSED = {"dense-int8", "pruned", "pruned-int8", "sparse"}
TRAINED = {"finetune", *COMPRESSED, *LAST_STEPS}
ALL_STEPS = {"ingest", "embed", "pretrain", *TRAINED}
WITHOUT_TEACHER = ALL_STEPS - {"ingest", "embed"}

Edit = Callable[[Path], None]


def set_number(path: str, value: Any) -> Edit:
    """Return an edit that sets a dotted key of params.yaml."""

    def edit(root: Path) -> None:
        params = yaml.safe_load((root / "params.yaml").read_text())
        *sections, name = path.split(".")
        section = params
        for key in sections:
            section = section[key]
        assert section.get(name) != value
        section[name] = value
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    return edit


def add_comment(file: str) -> Edit:
    """Return an edit that adds a comment to a code file."""

    def edit(root: Path) -> None:
        assert (root / file).is_file()
        with (root / file).open("a") as code_file:
            code_file.write("\n# another line\n")

    return edit


def rotate_image(root: Path) -> None:
    """Rotate one input image by 180 degrees."""
    path = root / "photos" / "wedge" / "07.png"
    with Image.open(path) as original:
        original.rotate(180).save(path)


CHANGES: dict[str, tuple[Edit, set[str]]] = {
    "data": (set_number("data.max_rejected", 3), ALL_STEPS),
    "data: labels": (set_number("data.labels_per_class", 5), ALL_STEPS),
    "teacher": (set_number("teacher.input_size", 64), ALL_STEPS - {"ingest"}),
    "pretrain": (set_number("pretrain.epochs", 3), WITHOUT_TEACHER),
    "finetune": (set_number("finetune.epochs", 5), TRAINED),
    "candidates: pruned": (
        set_number("candidates.pruned.remove.channels", 0.4),
        {"pruned", "pruned-int8", *LAST_STEPS},
    ),
    "candidates: a leaf": (set_number("candidates.dense-int8.calibration_images", 16), {"dense-int8", *LAST_STEPS}),
    "benchmark": (set_number("benchmark.samples", 24), LAST_STEPS),
    "promotion": (set_number("promotion.min_gain", 0.1), {"select", "refit", "report"}),
    "refit": (set_number("refit.min_kappa", 0.3), {"refit", "report"}),
    "an image": (rotate_image, ALL_STEPS),
    "winnow/": (add_comment("winnow/errors.py"), set()),
    "winnow/records": (add_comment("winnow/records/candidate.py"), set()),
    "winnow/config": (add_comment("winnow/config/candidates.py"), set()),
    "winnow/data": (add_comment("winnow/data/splits.py"), ALL_STEPS),
    "winnow/models": (add_comment("winnow/models/classifier_head.py"), ALL_STEPS - {"ingest"}),
    "winnow/evaluation": (add_comment("winnow/evaluation/accuracy_drop.py"), {"select", "refit", "report"}),
    "winnow/deploy": (add_comment("winnow/deploy/candidate_card.py"), TRAINED),
    "winnow/benchmark": (add_comment("winnow/benchmark/speedups.py"), LAST_STEPS),
    "winnow/training": (add_comment("winnow/training/loop.py"), WITHOUT_TEACHER),
    "winnow/refit": (add_comment("winnow/refit/acceptance.py"), {"refit", "report"}),
    "winnow/labels": (add_comment("winnow/labels/label_errors.py"), {"report"}),
    "winnow/selection": (add_comment("winnow/selection/decision.py"), {"select", "refit", "report"}),
    "winnow/cli": (add_comment("winnow/cli/run.py"), set()),
    "winnow/servers": (add_comment("winnow/servers/local.py"), set()),
    "winnow/pretraining": (add_comment("winnow/pretraining/simclr.py"), WITHOUT_TEACHER),
    "winnow/compression": (add_comment("winnow/compression/prune.py"), {"pruned", "pruned-int8", *LAST_STEPS}),
    "winnow/compression, of all": (add_comment("winnow/compression/recovery.py"), COMPRESSED | LAST_STEPS),
    "winnow/search": (add_comment("winnow/search/trial_front.py"), set()),
    "winnow/api": (add_comment("winnow/api/trained_networks.py"), set()),
    "winnow/steps": (add_comment("winnow/steps/benchmark.py"), LAST_STEPS),
    "winnow/reporting": (add_comment("winnow/reporting/html.py"), {"report"}),
    "tasks": (add_comment("tasks/tracking/mlflow_runs.py"), set()),
    "flows": (add_comment("flows/pipeline.py"), set()),
}
"""Change -> its edit, and the steps that it makes stale."""


def stage_names(stages: dict[str, Any]) -> set[str]:
    return {stage.removeprefix("candidate@") for stage in stages}


@pytest.fixture(scope="module")
def shared_copy(finished: tuple[Project, object], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a copy of the project whose changes are reverted after each test."""
    return finished[0].copy(tmp_path_factory.mktemp("drivers") / "copy")


def test_every_section_and_every_folder_has_a_change(shared_copy: Project) -> None:
    sections = set(yaml.safe_load((shared_copy.root / "params.yaml").read_text()))
    folders = {f"winnow/{path.parent.name}" for path in (shared_copy.root / "winnow").glob("*/__init__.py")}
    folders |= {"winnow/", "tasks", "flows"}
    assert {change.partition(":")[0].partition(",")[0].partition(" ")[0] for change in CHANGES} >= sections | folders


def stale_stages(root: Path) -> set[str]:
    """Return the stages that `winnow status` shows, by DVC in this process, which is four times as fast as a child."""
    from dvc.repo import Repo

    with contextlib.chdir(root), Repo() as repo:
        return stage_names(propagate_changes(repo.status(), load_config(root / "params.yaml")))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_these_stages_stale(shared_copy: Project, change: str) -> None:
    edit, expected = CHANGES[change]
    files = [path for path in shared_copy.root.rglob("*") if path.suffix in (".py", ".yaml", ".png") and path.is_file()]
    content_before = {path: path.read_bytes() for path in files if "artifacts" not in path.parts}
    try:
        edit(shared_copy.root)
        assert stale_stages(shared_copy.root) == expected
    finally:
        for path, content in content_before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
    assert stale_stages(shared_copy.root) == set()


def steps_run_by_winnow(project: Project) -> set[str]:
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    timings = result.stdout.partition("Time of each step")[2]
    return set(re.findall(r"^\s*(\S+)\s+ran\s", timings, re.MULTILINE)) - {"promote"}


def steps_run_by_dvc(project: Project) -> set[str]:
    result = project.dvc("repro")
    assert result.returncode == 0, result.stdout + result.stderr
    return stage_names(dict.fromkeys(re.findall(r"Running stage '([^']+)'", result.stdout)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param(
            set_number("candidates.pruned.remove.channels", 0.4), {"pruned", "pruned-int8", *LAST_STEPS}, id="a number"
        ),
        pytest.param(add_comment("winnow/compression/sparsify.py"), {"sparse", "refit"}, id="a comment"),
    ],
)
def test_both_drivers_run_the_same_steps(
    finished: tuple[Project, object], tmp_path: Path, edit: Edit, expected: set[str]
) -> None:
    by_flow, by_dvc = (finished[0].copy(tmp_path / name) for name in ("flow", "dvc"))
    for project in (by_flow, by_dvc):
        edit(project.root)
    assert steps_run_by_winnow(by_flow) == expected
    assert steps_run_by_dvc(by_dvc) == expected
    for project in (by_flow, by_dvc):
        assert json.loads(project.dvc("status", "--json").stdout) == {}
    for name in ("data", "pretrain", *(f"candidates/{name}" for name in ("dense", *COMPRESSED))):
        flow_record, dvc_record = (project.root / "artifacts" / name / "record.json" for project in (by_flow, by_dvc))
        assert flow_record.read_bytes() == dvc_record.read_bytes(), name
