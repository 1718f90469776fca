"""Fixtures of a project with its own MLflow store. Load them with `pytest_plugins = "tests.stores"`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.project import environment
from tasks.project.paths import ProjectPaths
from tests.handmade import write_run
from winnow.config import Config


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated MLflow database; creating one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def paths(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectPaths:
    """Return a project with an empty store, in the environment that the command line sets."""
    for key, value in environment.process_environment(tmp_path).items():
        monkeypatch.setenv(key, value)
    paths = ProjectPaths(tmp_path)
    paths.mlflow_artifacts.mkdir(parents=True)
    (paths.state_dir / "mlflow" / "mlflow.db").write_bytes(empty_store.read_bytes())
    return paths


@pytest.fixture
def config(paths: ProjectPaths) -> Config:
    """Write a run to `paths` and return its config."""
    return write_run(paths.root)
