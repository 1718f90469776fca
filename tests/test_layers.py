"""Check the layers: which file may import which, and what the wheel contains."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.closure import LAZY_INIT, ROOT, imported_files
from tests.wheel import build_wheel, tracked_files

PACKAGES = ("winnow", "tasks", "flows")
LAYERS = (
    {"errors", "records", "hardware", "eta", "printable", "random_streams", "stall_limit", "timing_lock", "config"},
    {"data", "models"},
    {"evaluation"},
    {"deploy"},
    {"benchmark"},
    {"training", "pretraining"},
    {"labels"},
    {"compression"},
    {"refit"},
    {"selection"},
    {"reporting"},
    {"steps"},
    {"search", "api"},
)
"""The library, lowest first; a file imports from its own layer and those below."""
ABOVE_TASKS = {"tasks": 0, "flows": 1, "winnow/cli": 2, "winnow/servers": 2}
"""Order of the packages above the library: `flows` calls `tasks`, and the command line and the servers call both."""
LIBRARIES = {
    "mlflow": {
        "tasks/tracking/mlflow_client.py",
        "tasks/tracking/mlflow_runs.py",
        "tasks/registry/registered_weights.py",
        "tasks/registry/registered_models.py",
        "tasks/registry/model_upload.py",
        "tasks/registry/accounts.py",
    },
    "dvc": {"tasks/versioning/dvc_stages.py"},  # its command line alone, mostly in a child process
}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _layer_index(path: Path) -> int:
    """Return the index of a file's layer; the packages above the library follow the last layer."""
    name = _name(path)
    for folder, above in ABOVE_TASKS.items():
        if name.startswith(f"{folder}/"):
            return len(LAYERS) + above
    module = name.removesuffix(".py").split("/")[1]
    return (
        len(LAYERS) - 1 if name == LAZY_INIT else next(height for height, layer in enumerate(LAYERS) if module in layer)
    )


def _libraries(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_downwards(path: Path) -> None:
    packages = {ROOT / package / "__init__.py" for package in PACKAGES}
    assert {_name(file) for file in imported_files(path) - packages if _layer_index(file) > _layer_index(path)} == set()


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_libraries_are_imported_only_where_allowed(path: Path) -> None:
    libraries = _libraries(path)
    if _layer_index(path) < len(LAYERS):
        assert not libraries & {"prefect", "mlflow", "dvc"}
    for library, files in LIBRARIES.items():
        assert library not in libraries or _name(path) in files


@pytest.mark.thorough
def test_no_import_cycles() -> None:
    """A package's own file counts only where one of its names is imported, not for each of its modules."""
    imports = {path: {file for file in imported_files(path) if not _is_package_of(file, path)} for path in FILES}
    while importing_none := {path for path, files in imports.items() if not files & set(imports)}:
        imports = {path: files for path, files in imports.items() if path not in importing_none}
    assert {_name(path): sorted(map(_name, files & set(imports))) for path, files in imports.items()} == {}


def _is_package_of(file: Path, path: Path) -> bool:
    return file == path or (file.name == "__init__.py" and file.parent in path.parents)


def test_command_line_does_not_import_torch() -> None:
    modules = "winnow.config, winnow.records, tasks.versioning.dvc_stages, winnow.cli.main"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_mlflow_folder_holds_no_python() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))


@pytest.mark.thorough
def test_wheel_holds_the_three_packages_only(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        names = wheel.namelist()
        params = wheel.read("tasks/project/templates/params.yaml")
    assert params == (ROOT / "params.yaml").read_bytes()
    top_level_folders = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top_level_folders == {"winnow", "tasks", "flows"}
    packaged = {name for name in names if name.endswith(".py")}
    on_disk = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert packaged == on_disk & set(tracked_files())
    assert {"flows/automations.yaml", "tasks/project/templates/team.yaml"} <= set(names)
