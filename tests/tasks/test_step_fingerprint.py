from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tasks.project.paths import ProjectPaths
from tasks.step_fingerprint import step_fingerprint
from tasks.step_runners import STEPS
from tests.closure import ROOT
from tests.conftest import tiny_params
from tests.tasks.conftest import write_step_record
from winnow.config import check_config

Change = Callable[[ProjectPaths, dict[str, Any]], object]


def fingerprint(paths: ProjectPaths, params: dict[str, Any], step: str, name: str) -> str:
    return step_fingerprint(check_config(params), paths, step, name)


def change_param(*keys: str, value: object) -> Change:
    def change(_paths: ProjectPaths, params: dict[str, Any]) -> None:
        section = params
        for key in keys[:-1]:
            section[key] = dict(section[key])
            section = section[key]
        section[keys[-1]] = value

    return change


def change_record(name: str) -> Change:
    return lambda paths, _params: write_step_record(paths.artifacts / name, 1.0)


def change_code(name: str) -> Change:
    """Return a change of a library file."""

    def change(paths: ProjectPaths, _params: dict[str, Any]) -> None:
        with (paths.root / "winnow" / name).open("a") as file:
            file.write("# changed\n")

    return change


def change_weights(paths: ProjectPaths, _params: dict[str, Any]) -> None:
    (paths.root / "mine.pth").write_bytes(b"weightz")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("step", "name", "change", "differs"),
    [
        ("pretrain", "pretrain", change_param("pretrain", "epochs", value=3), True),
        ("pretrain", "pretrain", change_record("data"), True),
        ("pretrain", "pretrain", change_record("embed"), True),
        ("pretrain", "pretrain", change_weights, False),
        ("pretrain", "pretrain", change_param("finetune", "epochs", value=5), False),
        ("finetune", "finetune", change_param("finetune", "epochs", value=5), True),
        ("finetune", "finetune", change_record("data"), True),
        ("finetune", "finetune", change_record("pretrain"), True),
        ("finetune", "finetune", change_weights, True),
        ("finetune", "finetune", change_param("pretrain", "epochs", value=3), False),
        ("candidate", "pruned-int8", change_param("candidates", "pruned-int8", "calibration_images", value=9), True),
        ("candidate", "pruned-int8", change_record("data"), True),
        ("candidate", "pruned-int8", change_record("candidates/dense"), True),
        ("candidate", "pruned-int8", change_record("candidates/pruned"), True),
        ("candidate", "pruned-int8", change_param("candidates", "sparse", "sparsity", value=0.4), False),
        ("candidate", "pruned-int8", change_param("benchmark", "rounds", value=7), False),
        ("pretrain", "pretrain", change_code("pretraining/rotnet.py"), True),
        ("pretrain", "pretrain", change_code("compression/quantize.py"), False),
        ("pretrain", "pretrain", change_code("eta.py"), False),
        ("pretrain", "pretrain", change_code("reporting/html.py"), False),
        ("finetune", "finetune", change_code("training/finetuning.py"), True),
        ("finetune", "finetune", change_code("servers/http.py"), False),
        ("candidate", "pruned-int8", change_code("compression/quantize.py"), True),
        ("candidate", "pruned-int8", change_code("compression/sparsify.py"), False),
    ],
)
def test_inputs_of_a_training_decide_its_checkpoint_folder(
    project: ProjectPaths, step: str, name: str, change: Change, differs: bool
) -> None:
    params = tiny_params()
    params["finetune"]["weights"] = "mine.pth"
    previous = fingerprint(project, params, step, name)
    assert fingerprint(project, params, step, name) == previous
    change(project, params)
    assert (fingerprint(project, params, step, name) != previous) is differs


@pytest.mark.parametrize("step", [step for step in STEPS if step != "refit"])  # a refit needs a winner
def test_every_step_has_a_fingerprint(project: ProjectPaths, step: str) -> None:
    """Also where a stage depends on a folder of code, as the report does."""
    templates = "winnow/reporting/templates"
    shutil.copytree(ROOT / templates, project.root / templates, dirs_exist_ok=True)
    name = "pruned" if step == "candidate" else step
    assert len(fingerprint(project, tiny_params(), step, name)) == 16
