"""The project's params.yaml, for commands that need its files to exist, too."""

from __future__ import annotations

from tasks.project.paths import ProjectPaths, check_files
from winnow.config import Config, load_config


def load_project_config(paths: ProjectPaths) -> Config:
    """Return the checked configuration. Raises ConfigError for mistakes and for missing files that it names."""
    config = load_config(paths.root / "params.yaml")
    check_files(config, paths.root)
    return config
