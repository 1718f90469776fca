"""`winnow run` and `dvc repro`: the same stale set for every kind of change, the same steps run, to the same bytes."""

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

TAIL = {"benchmark", "select", "refit", "report"}
TREE = {"dense-int8", "pruned", "pruned-int8", "sparse"}
TRAINED = {"finetune", *TREE, *TAIL}
ALL = {"ingest", "pretrain", *TRAINED}

Edit = Callable[[Path], None]


def number(path: str, value: Any) -> Edit:
    """Set a dotted key of params.yaml."""

    def edit(root: Path) -> None:
        params = yaml.safe_load((root / "params.yaml").read_text())
        *above, last = path.split(".")
        section = params
        for key in above:
            section = section[key]
        assert section.get(last) != value
        section[last] = value
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    return edit


def line(file: str) -> Edit:
    """Add a comment to a file of the code."""

    def edit(root: Path) -> None:
        assert (root / file).is_file()
        with (root / file).open("a") as opened:
            opened.write("\n# another line\n")

    return edit


def image(root: Path) -> None:
    """Turn one input image upside down."""
    path = root / "photos" / "wedge" / "07.png"
    with Image.open(path) as before:
        before.rotate(180).save(path)


CHANGES: dict[str, tuple[Edit, set[str]]] = {
    "data": (number("data.max_rejected", 3), ALL),
    "data: labels": (number("data.labels_per_class", 5), ALL),
    "pretrain": (number("pretrain.epochs", 3), ALL - {"ingest"}),
    "finetune": (number("finetune.epochs", 5), TRAINED),
    "candidates: pruned": (number("candidates.pruned.remove.channels", 0.4), {"pruned", "pruned-int8", *TAIL}),
    "candidates: a leaf": (number("candidates.dense-int8.calibration_images", 16), {"dense-int8", *TAIL}),
    "benchmark": (number("benchmark.samples", 24), TAIL),
    "promotion": (number("promotion.min_gain", 0.1), {"select", "refit", "report"}),
    "refit": (number("refit.min_kappa", 0.3), {"refit", "report"}),
    "an image": (image, ALL),
    "winnow/": (line("winnow/errors.py"), set()),
    "winnow/records": (line("winnow/records/candidate.py"), set()),
    "winnow/config": (line("winnow/config/candidates.py"), set()),
    "winnow/data": (line("winnow/data/splits.py"), ALL),
    "winnow/models": (line("winnow/models/classifier_head.py"), ALL - {"ingest"}),
    "winnow/evaluation": (line("winnow/evaluation/accuracy_drop.py"), {"select", "refit", "report"}),
    "winnow/deploy": (line("winnow/deploy/candidate_card.py"), TRAINED),
    "winnow/benchmark": (line("winnow/benchmark/speedups.py"), TAIL),
    "winnow/training": (line("winnow/training/loop.py"), ALL - {"ingest"}),
    "winnow/refit": (line("winnow/refit/acceptance.py"), {"refit", "report"}),
    "winnow/selection": (line("winnow/selection/decision.py"), {"select", "refit", "report"}),
    "winnow/cli": (line("winnow/cli/run.py"), set()),
    "winnow/servers": (line("winnow/servers/local.py"), set()),
    "winnow/pretraining": (line("winnow/pretraining/simclr.py"), ALL - {"ingest"}),
    "winnow/compression": (line("winnow/compression/prune.py"), {"pruned", "pruned-int8", *TAIL}),
    "winnow/compression, of all": (line("winnow/compression/recovery.py"), TREE | TAIL),
    "winnow/search": (line("winnow/search/trial_front.py"), set()),
    "winnow/api": (line("winnow/api/trained_networks.py"), set()),
    "winnow/steps": (line("winnow/steps/benchmark.py"), TAIL),
    "winnow/reporting": (line("winnow/reporting/html.py"), {"report"}),
    "tasks": (line("tasks/tracking/mlflow_runs.py"), set()),
    "flows": (line("flows/pipeline.py"), set()),
}
"""What is changed -> how, and which steps that makes stale."""


def names(stages: dict[str, Any]) -> set[str]:
    return {stage.removeprefix("candidate@") for stage in stages}


@pytest.fixture(scope="module")
def checked(finished: tuple[Project, object], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy whose changes are taken back one by one."""
    return finished[0].copy(tmp_path_factory.mktemp("drivers") / "copy")


def test_every_section_and_every_folder_is_tried(checked: Project) -> None:
    sections = set(yaml.safe_load((checked.root / "params.yaml").read_text()))
    folders = {f"winnow/{path.parent.name}" for path in (checked.root / "winnow").glob("*/__init__.py")}
    folders |= {"winnow/", "tasks", "flows"}
    assert {change.partition(":")[0].partition(",")[0].partition(" ")[0] for change in CHANGES} >= sections | folders


def stale(root: Path) -> set[str]:
    """What `winnow status` shows, asked of DVC in this process: that is four times as fast as a child."""
    from dvc.repo import Repo

    with contextlib.chdir(root), Repo() as repo:
        return names(propagate_changes(repo.status(), load_config(root / "params.yaml")))


@pytest.mark.parametrize("change", CHANGES)
def test_the_stale_set(checked: Project, change: str) -> None:
    edit, expected = CHANGES[change]
    files = [path for path in checked.root.rglob("*") if path.suffix in (".py", ".yaml", ".png") and path.is_file()]
    before = {path: path.read_bytes() for path in files if "artifacts" not in path.parts}
    try:
        edit(checked.root)
        assert stale(checked.root) == expected
    finally:
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
    assert stale(checked.root) == set()


def ran_by_winnow(project: Project) -> set[str]:
    result = project.winnow("run")
    assert result.returncode == 0, result.stdout + result.stderr
    told = result.stdout.partition("Where the time went")[2]
    return set(re.findall(r"^\s*(\S+)\s+ran\s", told, re.MULTILINE)) - {"promote"}


def ran_by_dvc(project: Project) -> set[str]:
    result = project.dvc("repro")
    assert result.returncode == 0, result.stdout + result.stderr
    return names(dict.fromkeys(re.findall(r"Running stage '([^']+)'", result.stdout)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param(number("candidates.pruned.remove.channels", 0.4), {"pruned", "pruned-int8", *TAIL}, id="a number"),
        pytest.param(line("winnow/compression/sparsify.py"), {"sparse", "refit"}, id="a comment"),
    ],
)
def test_both_drivers_run_the_same_steps(
    finished: tuple[Project, object], tmp_path: Path, edit: Edit, expected: set[str]
) -> None:
    by_flow, by_dvc = (finished[0].copy(tmp_path / name) for name in ("flow", "dvc"))
    for project in (by_flow, by_dvc):
        edit(project.root)
    assert ran_by_winnow(by_flow) == expected
    assert ran_by_dvc(by_dvc) == expected
    for project in (by_flow, by_dvc):
        assert json.loads(project.dvc("status", "--json").stdout) == {}
    for name in ("data", "pretrain", *(f"candidates/{name}" for name in ("dense", *TREE))):
        one, other = (project.root / "artifacts" / name / "record.json" for project in (by_flow, by_dvc))
        assert one.read_bytes() == other.read_bytes(), name
