"""The context of the container's build holds what the wheel is made of."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_build_context_holds_all_parts_of_the_wheel() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "**", "everything that is not named is left out"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "requirements.lock"}
    templates = (ROOT / "tasks" / "project" / "templates").iterdir()
    linked = {path.resolve().relative_to(ROOT.resolve()).as_posix() for path in templates if path.is_symlink()}
    assert linked
    assert packages | files | linked <= kept
