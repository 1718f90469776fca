"""The files that `winnow init` writes into a project. In the repository they are links to its own files."""

from __future__ import annotations

from pathlib import Path


def template(name: str) -> str:
    """Return the text of a file: params.yaml, dvc.yaml, prefect.yaml or team.yaml."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
