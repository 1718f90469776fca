"""Fetch weights from a real MLflow registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.project.paths import ProjectPaths
from tasks.registry.registered_weights import fetch_weights, registered_names
from tasks.tracking import mlflow_client
from tests.conftest import tiny_params
from winnow.config import Config, check_config
from winnow.config.weights import weights_file
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import Architecture, build_model

pytest_plugins = "tests.stores"
NAME = "models:/flowers@best"
SMALL = Architecture(backbone="resnet8", num_classes=5, image_size=16)


def make_config(start: str = NAME, backbone: str = "resnet8") -> Config:
    params = tiny_params()
    params["pretrain"] |= {"start": start, "backbone": backbone}
    return check_config(params)


def register(paths: ProjectPaths, folder: Path, model: str = "flowers", alias: str = "best") -> str:
    """Register a folder as a version of the model, with the alias; return the version."""
    client: Any = mlflow_client.connect(paths)
    experiment = client.get_experiment_by_name("weights")
    location = (paths.root / "models").as_uri()  # by default it would be ./mlruns of this process
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("weights", location))
    client.log_artifacts(run.info.run_id, str(folder), "model")
    if not client.search_registered_models(filter_string=f"name = '{model}'"):
        client.create_registered_model(model)
    version = client.create_model_version(model, f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias(model, alias, version.version)
    return str(version.version)


def write_weights(folder: Path, seed: int, suffix: str = ".safetensors") -> dict[str, torch.Tensor]:
    folder.mkdir()
    state = build_model(SMALL, seed=seed).state_dict()
    if suffix == ".safetensors":
        save_file(state, folder / "weights.safetensors")
    else:
        torch.save(state, folder / f"state_dict{suffix}")
    return dict(state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_tensors_are_fetched_once_and_again_when_the_alias_moves(
    paths: ProjectPaths, tmp_path: Path, suffix: str
) -> None:
    config = make_config()
    file = paths.root / "data" / "weights" / "mlflow" / "flowers@best.safetensors"
    for seed in (0, 1):
        state = write_weights(tmp_path / f"model{seed}", seed, suffix)
        register(paths, tmp_path / f"model{seed}")
        fetch_weights(paths, config)
        fetched = load_file(file)
        assert fetched.keys() == state.keys()
        assert all(torch.equal(fetched[name], value) for name, value in state.items())
        written = file.stat().st_mtime_ns
        fetch_weights(paths, config)
        assert file.stat().st_mtime_ns == written
    assert sorted(path.name for path in file.parent.iterdir()) == ["flowers@best.json", "flowers@best.safetensors"]


def test_a_version_is_named_by_its_number(paths: ProjectPaths, tmp_path: Path) -> None:
    write_weights(tmp_path / "model", 0)
    version = register(paths, tmp_path / "model")
    fetch_weights(paths, make_config(f"models:/flowers/{version}"))
    assert (paths.root / str(weights_file(f"models:/flowers/{version}"))).is_file()


def test_an_unknown_model_is_an_error(paths: ProjectPaths) -> None:
    with pytest.raises(ArtifactError, match=r"models:/flowers@best: MLflow has no such model version"):
        fetch_weights(paths, make_config())


def test_a_model_without_tensors_keeps_what_was_fetched(paths: ProjectPaths, tmp_path: Path) -> None:
    write_weights(tmp_path / "good", 0)
    register(paths, tmp_path / "good")
    fetch_weights(paths, make_config())
    file = paths.root / str(weights_file(NAME))
    before = file.read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model.onnx").write_bytes(b"x")
    register(paths, tmp_path / "bad")
    with pytest.raises(ArtifactError, match=r"must hold one file of weights .*, and has none"):
        fetch_weights(paths, make_config())
    assert file.read_bytes() == before


def test_names_are_checked_when_params_are_read() -> None:
    assert registered_names(make_config()) == [NAME]
    assert registered_names(make_config("none")) == []
    params = tiny_params()
    params["teacher"] = {"weights": NAME}
    with pytest.raises(ConfigError, match="does not say which network it belongs to"):
        check_config(params)
    for name in ("models:/flowers", "models:/../x@best", "models:/a/b@c"):
        with pytest.raises(ConfigError, match=r"models:/NAME@ALIAS"):
            make_config(name)
