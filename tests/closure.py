"""Find the files that a file imports, directly or not, by parsing instead of importing."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAZY_INIT = "winnow/__init__.py"
"""The package's own file: it imports the in-memory interface when one of its names is used, and nothing before."""


def imported_files(path: Path, root: Path = ROOT) -> set[Path]:
    """Return the project's files that `path` imports, anywhere in it; packages count with their __init__.py."""
    imported: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            imported |= _files_of(name, root)
    return imported


def _files_of(name: str, root: Path) -> set[Path]:
    parts = name.split(".")
    if not (root / parts[0]).is_dir():
        return set()
    files = {root.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts) + 1)}
    files.add(root.joinpath(*parts).with_suffix(".py"))
    return {file for file in files if file.is_file()}


def closure(path: Path, skip: set[Path] = frozenset(), root: Path = ROOT) -> set[Path]:  # type: ignore[assignment]
    """Return all files that `path` reaches; files in `skip` are neither followed nor returned."""
    visited: set[Path] = set()
    pending = [path]
    while pending:
        current = pending.pop()
        if current in visited or current in skip:
            continue
        visited.add(current)
        if current == root / LAZY_INIT:
            continue
        pending += imported_files(current, root)
    return visited
