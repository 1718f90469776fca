"""The files that `winnow init` writes into a project. In the repository they are links to its own files.

stages.yaml is dvc.yaml: DVC would take a file of that name for further stages.
"""

from __future__ import annotations

from pathlib import Path


def template(name: str) -> str:
    """Return the text of a file: params.yaml, full.yaml (a preset), stages.yaml, prefect.yaml or team.yaml."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
