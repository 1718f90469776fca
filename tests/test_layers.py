"""The house: who may import whom, and what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.closure import ROOT

ALLOWED = {"winnow": {"winnow"}, "tasks": {"winnow", "tasks"}, "flows": {"winnow", "tasks", "flows"}}
KEPT_OUT = {"winnow": {"prefect", "mlflow", "dvc"}}
MLFLOW_FILES = {"tasks/store.py", "tasks/tracking.py", "tasks/registry.py", "tasks/accounts.py"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


FILES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = _imports(path)
    assert found & set(ALLOWED) <= ALLOWED[package]
    assert not found & KEPT_OUT.get(package, set())
    if "mlflow" in found:
        assert path.relative_to(ROOT).as_posix() in MLFLOW_FILES


def test_steps_without_torch_stay_without() -> None:
    code = "import sys, winnow.config, winnow.records, tasks.versioning, flows.cli; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_mlflow_folder_holds_no_python() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_wheel_holds_the_three_packages_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in tracked:
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--out-dir", tmp_path, source],
        capture_output=True,
        check=True,
    )
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"winnow", "tasks", "flows"}
    packaged = {name for name in names if name.endswith(".py")}
    on_disk = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert packaged == on_disk & {name for name in tracked if name}
