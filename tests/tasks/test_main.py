from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import __main__, stage_runner
from tasks.project.paths import ProjectPaths
from tasks.tracking import mlflow_runs
from tests.closure import ROOT
from tests.conftest import tiny_params
from tests.records import embed_details, make_record, pretrain_details
from winnow.config import check_config
from winnow.errors import ArtifactError
from winnow.records import write_record

Change = Callable[[ProjectPaths, dict[str, Any]], object]


def write_step_record(folder: Path, number: float = 0.0) -> None:
    """Write a record whose content does not matter except for its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, make_record("pretrain", pretrain_details(), metrics={"x": number}))


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path)
    for name in ("data", "embed", "pretrain", "candidates/dense", "candidates/pruned"):
        write_step_record(paths.artifacts / name)
    (tmp_path / "mine.pth").write_bytes(b"weights")
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copytree(ROOT / "winnow", tmp_path / "winnow", ignore=shutil.ignore_patterns("__pycache__"))
    return paths


def fingerprint(paths: ProjectPaths, params: dict[str, Any], step: str, name: str) -> str:
    return __main__._fingerprint(check_config(params), paths, step, name)


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
    paths: ProjectPaths, step: str, name: str, change: Change, differs: bool
) -> None:
    params = tiny_params()
    params["finetune"]["weights"] = "mine.pth"
    previous = fingerprint(paths, params, step, name)
    assert fingerprint(paths, params, step, name) == previous
    change(paths, params)
    assert (fingerprint(paths, params, step, name) != previous) is differs


def test_outdated_checkpoints_are_removed_before_the_step_runs(paths: ProjectPaths) -> None:
    config = check_config(tiny_params() | {"pretrain": {"method": "none"}})
    (paths.artifacts / "embed").mkdir(exist_ok=True)
    write_record(paths.artifacts / "embed", make_record("embed", embed_details()))
    current = paths.checkpoints / f"pretrain-{__main__._fingerprint(config, paths, 'pretrain', 'pretrain')}"
    outdated, other = paths.checkpoints / f"pretrain-{'0' * 16}", paths.checkpoints / f"pruned-{'0' * 16}"
    for folder in (current, outdated, other):
        folder.mkdir(parents=True)
    with pytest.raises(ArtifactError):  # there are no images
        __main__.run_step(config, paths, "pretrain", "pretrain")
    assert sorted(paths.checkpoints.iterdir()) == sorted([current, other])


def test_curves_of_earlier_runs_are_not_logged(paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(mlflow_runs, "log_curves", lambda *arguments: logged.append(arguments[2][0]["from"]))
    for digest, age in (("a" * 16, 100), ("b" * 16, -100)):
        path = paths.checkpoints / f"pretrain-{digest}" / "pretrain.curves.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"epoch": 1, "from": "{digest[0]}"}}\n')
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    ended = threading.Event()
    ended.set()
    stage_runner._follow(paths, "pretrain", "run", ended)
    assert logged == ["b"]
