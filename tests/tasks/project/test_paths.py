from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tasks.project.paths import ProjectPaths, check_files, registered_model_name
from tests.conftest import tiny_params
from winnow.config import Config, check_config
from winnow.data.sources import open_source
from winnow.errors import ConfigError


def test_everything_lies_in_two_folders() -> None:
    paths = ProjectPaths(Path("/project"))
    hidden = (paths.checkpoints, paths.logs, paths.mlflow_artifacts, paths.test_readings)
    assert paths.artifacts == Path("/project/artifacts")
    assert all(path.is_relative_to("/project/.winnow") for path in hidden)
    assert paths.mlflow_store == "sqlite:////project/.winnow/mlflow/mlflow.db"


def test_queued_experiments_count_their_readings_of_the_test_split_in_the_project() -> None:
    queued = ProjectPaths(Path("/project/.dvc/tmp/exps/tmpabc"))
    assert (
        queued.test_readings
        == ProjectPaths(Path("/project")).test_readings
        == Path("/project/.winnow/test-readings.json")
    )
    assert queued.state_dir == Path("/project/.dvc/tmp/exps/tmpabc/.winnow")


def config(registered: str = "auto", **data: Any) -> Config:
    params = tiny_params()
    return check_config(
        {
            **params,
            "data": {**params["data"], **data},
            "promotion": {**params["promotion"], "registered_model": registered},
        }
    )


def test_files_named_in_params_yaml_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as exc_info:
        check_files(config(), tmp_path)
    message = str(exc_info.value)
    assert f"data.path: 'photos' does not exist (looked for in {tmp_path})" in message
    assert "finetune.weights: 'data/none' is not a file" in message  # both at once
    (tmp_path / "photos").mkdir()
    (tmp_path / "data" / "none").mkdir(parents=True)  # a folder is no file
    with pytest.raises(ConfigError, match=r"files or folders that cannot be used:\n  finetune\.weights"):
        check_files(config(), tmp_path)
    (tmp_path / "data" / "none").rmdir()
    (tmp_path / "data" / "none").touch()
    check_files(config(), tmp_path)
    check_files(config(path=str(tmp_path / "photos")), tmp_path)


@pytest.mark.parametrize("path", [".", "..", "photos/..", "/"])
def test_a_folder_of_images_may_not_hold_the_project(tmp_path: Path, path: str) -> None:
    """DVC would hash the project's own results, or stop at a file of its own."""
    with pytest.raises(ConfigError, match=r"data\.path: .* holds the project itself .*a folder of their own"):
        check_files(config(path=path), tmp_path)


@pytest.mark.parametrize("key", ["teacher.weights", "pretrain.start"])
def test_files_of_known_weights_must_exist_but_registered_models_are_fetched_later(tmp_path: Path, key: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "none").touch()
    section, name = key.split(".")
    settings: dict[str, Any] = {"teacher": {"backbone": "resnet50"}, "pretrain": {"method": "none"}}[section]

    def with_weights(weights: str) -> Config:
        return check_config({**tiny_params(), section: {**settings, name: weights}})

    with pytest.raises(ConfigError) as exc_info:
        check_files(with_weights("data/weights/mien.safetensors"), tmp_path)
    assert f"{key}: 'data/weights/mien.safetensors'" in str(exc_info.value)
    (tmp_path / "data" / "weights" / "mien.safetensors").touch()
    check_files(with_weights("data/weights/mien.safetensors"), tmp_path)
    check_files(with_weights("models:/birds@champion"), tmp_path)


@pytest.mark.parametrize(
    ("data", "name", "registered"),
    [
        (
            {"source": "sample", "path": "data/cifar10-jpeg-sample.tar.xz"},
            "CIFAR-10 (JPEG) sample",
            "cifar-10-jpeg-sample",
        ),
        ({"source": "sample", "path": "data/Birds.tar.xz"}, "Birds", "birds"),
        ({"source": "cifar10", "path": "data/none"}, "CIFAR-10", "cifar-10"),
        ({"path": "/somewhere/My Photos, 2024"}, "My Photos, 2024", "my-photos-2024"),
        ({"path": "/somewhere/birds/"}, "birds", "birds"),
        ({"path": "/somewhere/cats/../dogs"}, "dogs", "dogs"),
        ({"path": "/somewhere/猫"}, "猫", "images-a68cf446"),
        ({"path": "/somewhere/犬"}, "犬", "images-35e9595e"),
        ({"path": "/somewhere/猫 2024"}, "猫 2024", "2024-f3ec970b"),
        ({"path": "/somewhere/Äpfel"}, "Äpfel", "pfel-8e41bdc8"),
        ({"path": "/somewhere/A\u0308pfel"}, "A\u0308pfel", "pfel-8e41bdc8"),  # as macOS writes it
        ({"path": "/somewhere/!!!"}, "!!!", "images-3894b0d5"),
    ],
)
def test_names_of_data_and_model(data: dict[str, str], name: str, registered: str) -> None:
    assert config(**data).data.title == name
    assert registered_model_name(config(**data)) == registered
    assert registered_model_name(config("Team.Model-1", **data)) == "Team.Model-1"


@pytest.mark.parametrize("name", ["cifar10-jpeg-sample.tar.xz", "birds.2.tar.xz", "My Photos"])
def test_the_title_equals_that_of_the_source(image_folder: Path, tmp_path: Path, name: str) -> None:
    path, source = tmp_path / name, "sample" if name.endswith(".tar.xz") else "folder"
    if source == "sample":
        with tarfile.open(path, "w:xz") as archive:
            archive.add(image_folder, "train")
    else:
        image_folder.rename(path)
    data = config(source=source, path=str(path)).data
    assert open_source(data, tmp_path).title == data.title
