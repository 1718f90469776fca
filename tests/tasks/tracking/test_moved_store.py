from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.project import environment
from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry import registered_models
from tasks.registry.promotion import promote
from tasks.tracking import mlflow_client, tracked_runs
from tasks.tracking.moved_store import relocate
from tests.handmade import MODEL
from winnow.config import Config
from winnow.deploy.onnx_session import MODEL as MODEL_FILE

pytest_plugins = "tests.stores"


def enter(root: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectPaths:
    """Return the paths of a project in this folder, in the environment that the command line sets there."""
    for key, value in environment.process_environment(root).items():
        monkeypatch.setenv(key, value)
    return ProjectPaths(root)


def champion_file(paths: ProjectPaths) -> bytes:
    version = registered_models.get(paths, MODEL, registered_models.CHAMPION)
    return (registered_models.fetch(paths, MODEL, version) / MODEL_FILE).read_bytes()


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.thorough
@pytest.mark.parametrize("is_copied", [False, True])
def test_a_project_works_where_it_was_moved_or_copied_to(
    paths: ProjectPaths,
    config: Config,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    is_copied: bool,
) -> None:
    assert registered_model_name(config) == MODEL
    tracked_runs.track(paths, config)
    promote(paths, config)
    model = champion_file(paths)
    target = tmp_path_factory.mktemp("other") / "it's 100 % moved"
    shutil.copytree(paths.root, target)
    if not is_copied:
        shutil.rmtree(paths.state_dir)
    moved = enter(target, monkeypatch)
    shutil.rmtree(moved.state_dir / "models")  # the cache of downloaded versions
    left_behind = files_in(paths.mlflow_artifacts)
    assert champion_file(moved) == model
    with mlflow_client.session(moved) as client:
        experiment = mlflow_client.experiment_id(moved, config)
        former = client.search_runs([experiment])
        assert all(run.info.artifact_uri.startswith(moved.mlflow_artifacts.as_uri()) for run in former)
        client.log_text(client.create_run(experiment).info.run_id, "x", "note.txt")
    assert list(moved.mlflow_artifacts.rglob("note.txt"))
    assert files_in(paths.mlflow_artifacts) == left_behind
    assert not relocate(moved)


def test_a_damaged_or_missing_database_is_left_to_mlflow(tmp_path: Path) -> None:
    paths = ProjectPaths(tmp_path)
    assert not relocate(paths)
    file = tmp_path / ".winnow" / "mlflow" / "mlflow.db"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database, but long enough to be one" * 100)
    assert not relocate(paths)
    assert file.read_bytes().startswith(b"no database")
