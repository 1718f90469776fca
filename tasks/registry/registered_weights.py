"""Weights of a model in MLflow's registry, as a file that a step can read: `pretrain.start: models:/NAME@ALIAS`.

Steps know no MLflow, and DVC notices changes of files alone. So the tensors of the model are fetched before each run to
data/weights/mlflow/, which is a dependency of the steps that read them: when the alias moves on, those steps run again.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.tracking.mlflow_client import session
from winnow.config import Config
from winnow.config.weights import FILE_SUFFIXES, REGISTERED, weights_file
from winnow.errors import ArtifactError
from winnow.records import atomic_path, read_json, write_json

log = logging.getLogger(__name__)


def registered_names(config: Config) -> list[str]:
    """Return the addresses of registered models that params.yaml names as weights."""
    named = (config.teacher.weights, config.pretrain.start)
    return [name for name in dict.fromkeys(named) if REGISTERED.fullmatch(name)]


def fetch_weights(paths: ProjectPaths, config: Config) -> None:
    """Fetch the tensors of every registered model that params.yaml names, unless this version is there already.

    Raises ArtifactError for a model that does not exist, or holds no tensors that can be read; a file that was fetched
    before stays.
    """
    for name in registered_names(config):
        _fetch(paths, name)


def _fetch(paths: ProjectPaths, name: str) -> None:
    file = paths.root / str(weights_file(name))
    note = file.with_suffix(".json")
    with session(paths, "the role reader") as client:
        version = _find_version(client, name)
        origin = {"version": str(version.version), "source": str(version.source)}
        if file.is_file() and note.is_file() and read_json(note) == origin:
            return
        log.info("fetch: %s, version %s", name, version.version)
        with tempfile.TemporaryDirectory() as scratch:
            import mlflow.artifacts

            address = f"models:/{version.name}/{version.version}"
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch))
            _write_tensors(name, folder, file)
    write_json(note, origin)


def _find_version(client: Any, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    match = REGISTERED.fullmatch(name)
    assert match is not None
    model, alias, number = match.groups()
    try:
        return client.get_model_version(model, number) if number else client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ArtifactError(f"{name}: MLflow has no such model version ({error.message})") from error


def _write_tensors(name: str, folder: Path, file: Path) -> None:
    """Write the tensors of the one file of weights in a model's folder to `file`."""
    from safetensors.torch import save_file

    from winnow.models.foreign_weights import read_tensors

    files = sorted(path for path in folder.rglob("*") if path.suffix in FILE_SUFFIXES)
    if len(files) != 1:
        listing = ", ".join(str(path.relative_to(folder)) for path in files) or "none"
        raise ArtifactError(
            f"{name} must hold one file of weights ({', '.join(FILE_SUFFIXES)}), and has {listing}; register the "
            "model with its state_dict as a file, such as mlflow.pytorch.log_model(..., extra_files=[...])"
        )
    tensors = {key: tensor.contiguous().clone() for key, tensor in read_tensors(files[0]).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        save_file(tensors, temporary)
