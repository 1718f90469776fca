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
from tests.records import make_record, pretrain_details
from winnow.config import check_config
from winnow.errors import ArtifactError
from winnow.records import write_record

Change = Callable[[ProjectPaths, dict[str, Any]], object]


def leave(folder: Path, number: float = 0.0) -> None:
    """A record of which only the digest counts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, make_record("pretrain", pretrain_details(), metrics={"x": number}))


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    paths = ProjectPaths(tmp_path)
    for name in ("data", "pretrain", "candidates/dense", "candidates/pruned"):
        leave(paths.artifacts / name)
    (tmp_path / "mine.pth").write_bytes(b"weights")
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    shutil.copytree(ROOT / "winnow", tmp_path / "winnow", ignore=shutil.ignore_patterns("__pycache__"))
    return paths


def fingerprint(paths: ProjectPaths, params: dict[str, Any], step: str, name: str) -> str:
    return __main__._fingerprint(check_config(params), paths, step, name)


def put(*keys: str, value: object) -> Change:
    def change(_places: ProjectPaths, params: dict[str, Any]) -> None:
        at = params
        for key in keys[:-1]:
            at[key] = dict(at[key])
            at = at[key]
        at[keys[-1]] = value

    return change


def record(name: str) -> Change:
    return lambda paths, _params: leave(paths.artifacts / name, 1.0)


def code(name: str) -> Change:
    """A changed file of the library."""

    def change(paths: ProjectPaths, _params: dict[str, Any]) -> None:
        with (paths.root / "winnow" / name).open("a") as file:
            file.write("# changed\n")

    return change


def weights(paths: ProjectPaths, _params: dict[str, Any]) -> None:
    (paths.root / "mine.pth").write_bytes(b"weightz")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("step", "name", "change", "differs"),
    [
        ("pretrain", "pretrain", put("pretrain", "epochs", value=3), True),
        ("pretrain", "pretrain", record("data"), True),
        ("pretrain", "pretrain", weights, False),
        ("pretrain", "pretrain", put("finetune", "epochs", value=5), False),
        ("finetune", "finetune", put("finetune", "epochs", value=5), True),
        ("finetune", "finetune", record("data"), True),
        ("finetune", "finetune", record("pretrain"), True),
        ("finetune", "finetune", weights, True),
        ("finetune", "finetune", put("pretrain", "epochs", value=3), False),
        ("candidate", "pruned-int8", put("candidates", "pruned-int8", "calibration_images", value=9), True),
        ("candidate", "pruned-int8", record("data"), True),
        ("candidate", "pruned-int8", record("candidates/dense"), True),
        ("candidate", "pruned-int8", record("candidates/pruned"), True),
        ("candidate", "pruned-int8", put("candidates", "sparse", "sparsity", value=0.4), False),
        ("candidate", "pruned-int8", put("benchmark", "rounds", value=7), False),
        ("pretrain", "pretrain", code("pretraining/rotnet.py"), True),
        ("pretrain", "pretrain", code("compression/quantize.py"), False),
        ("pretrain", "pretrain", code("eta.py"), False),
        ("pretrain", "pretrain", code("reporting/html.py"), False),
        ("finetune", "finetune", code("training/finetuning.py"), True),
        ("finetune", "finetune", code("servers/http.py"), False),
        ("candidate", "pruned-int8", code("compression/quantize.py"), True),
        ("candidate", "pruned-int8", code("compression/sparsify.py"), False),
    ],
)
def test_what_decides_a_training_decides_its_folder(
    paths: ProjectPaths, step: str, name: str, change: Change, differs: bool
) -> None:
    params = tiny_params()
    params["finetune"]["weights"] = "mine.pth"
    before = fingerprint(paths, params, step, name)
    assert fingerprint(paths, params, step, name) == before
    change(paths, params)
    assert (fingerprint(paths, params, step, name) != before) is differs


def test_checkpoints_of_a_training_that_was_given_up_go_before_the_step_runs(paths: ProjectPaths) -> None:
    config = check_config(tiny_params() | {"pretrain": {"method": "none"}})
    own = paths.checkpoints / f"pretrain-{__main__._fingerprint(config, paths, 'pretrain', 'pretrain')}"
    given_up, other = paths.checkpoints / f"pretrain-{'0' * 16}", paths.checkpoints / f"pruned-{'0' * 16}"
    for folder in (own, given_up, other):
        folder.mkdir(parents=True)
    with pytest.raises(ArtifactError):  # there are no images
        __main__.run_step(config, paths, "pretrain", "pretrain")
    assert sorted(paths.checkpoints.iterdir()) == sorted([own, other])


def test_curves_that_lay_there_before_are_not_passed_on(paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(mlflow_runs, "log_curves", lambda *arguments: sent.append(arguments[2][0]["from"]))
    for digest, age in (("a" * 16, 100), ("b" * 16, -100)):
        path = paths.checkpoints / f"pretrain-{digest}" / "pretrain.curves.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(f'{{"epoch": 1, "from": "{digest[0]}"}}\n')
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    ended = threading.Event()
    ended.set()
    stage_runner._follow(paths, "pretrain", "run", ended)
    assert sent == ["b"]
