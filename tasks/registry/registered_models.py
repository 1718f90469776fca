"""Versions in MLflow's model registry: look up, annotate, download, and set aliases.

    champion      the version in production
    previous      the champion before it; `winnow rollback` restores it
    challenger    the last winner of a run, whether it became champion or not

A version is identified by the sha256 of its model.onnx (tag `winnow.sha256`), so the same file is registered once. The
tag `winnow.card_sha256` is the digest of its card, so that a changed card (renamed classes) is never served. MLflow has
no conditional write of an alias, so callers check the current one just before they set it. The decision to promote is
in promotion.py, the upload of a model in model_upload.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.project.paths import ProjectPaths
from tasks.project.state_files import KnownVersion
from tasks.registry import known_versions
from tasks.tracking import tracking_store
from tasks.tracking.mlflow_client import AGAIN_HINT, session
from tasks.tracking.tags import CANDIDATE_TAG, CARD_SHA256_TAG, SHA256_TAG
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ArtifactError, WinnowError
from winnow.printable import markdown
from winnow.records import CARD, DeploymentCard, sha256_of
from winnow.refit.deployed_folder import SELECTED

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a missing model, alias or version."""
FORBIDDEN_CODE = "PERMISSION_DENIED"
DESCRIPTION_LENGTH = 5000
"""The width of the column of descriptions in MLflow's database, in characters: PostgreSQL refuses longer ones."""
LINE_LENGTH = 1000


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model."""

    number: str
    sha256: str
    candidate: str
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"version {self.number} ({self.candidate})"


def find(paths: ProjectPaths, model: str, which: str, hint: str = AGAIN_HINT) -> ModelVersion | None:
    """Return the version with this alias or number, or None. `hint`: as in `session`."""
    from mlflow.exceptions import MlflowException

    with session(paths, "the role reader", hint) as client:
        try:
            if which.isdigit():
                return to_version(client.get_model_version(model, which))
            return to_version(client.get_model_version_by_alias(model, which))
        except MlflowException as error:
            if error.error_code in NOT_FOUND_CODES or (
                error.error_code == FORBIDDEN_CODE and _is_unseen(client, model)
            ):
                return None
            raise


def _is_unseen(client: Any, model: str) -> bool:
    """Return whether the account sees no such model: a server with accounts reports a missing model as forbidden."""
    return not client.search_registered_models(f"name = '{model}'", max_results=1)


def find_by_digest(paths: ProjectPaths, model: str, sha256: str) -> ModelVersion | None:
    """Return the version with the file of this digest, or None."""
    with session(paths) as client:
        query = f"name = '{model}' and tags.`{SHA256_TAG}` = '{sha256}'"
        versions = client.search_model_versions(query, max_results=1)
        return to_version(versions[0]) if versions else None


def to_version(entity: Any) -> ModelVersion:
    """Convert a ModelVersion of MLflow."""
    tags = dict(entity.tags)
    return ModelVersion(str(entity.version), tags.get(SHA256_TAG, ""), tags.get(CANDIDATE_TAG, "?"), tags)


def set_alias(paths: ProjectPaths, model: str, alias: str, number: str | None) -> None:
    """Point an alias at a version number; None deletes the alias."""
    with session(paths) as client:
        if number is None:
            client.delete_registered_model_alias(model, alias)
        else:
            client.set_registered_model_alias(model, alias, number)


def annotate(
    paths: ProjectPaths, model: str, version: ModelVersion, tags: Mapping[str, str | None], line: str = ""
) -> None:
    """Set tags of a version (None deletes a tag), and append a line to its description.

    Where the description gets too long, its oldest appended lines are left out.
    """
    with session(paths) as client:
        for key, value in tags.items():
            if value is not None:
                client.set_model_version_tag(model, version.number, key, value)
            elif key in version.tags:
                client.delete_model_version_tag(model, version.number, key)
        if line:
            description = client.get_model_version(model, version.number).description or ""
            client.update_model_version(model, version.number, _append(description, line))


def _append(description: str, line: str) -> str:
    entry, lines = f"- {markdown(line)}"[:LINE_LENGTH], description.splitlines()
    room = DESCRIPTION_LENGTH - len(entry) - 1
    while len("\n".join(lines)) > room and (oldest := next((row for row in lines if row.startswith("- ")), "")):
        lines.remove(oldest)
    return "\n".join(["\n".join(lines)[:room], entry]).strip()


def get(paths: ProjectPaths, model_name: str, which: str) -> ModelVersion:
    """Return the version with this alias or number. Raises WinnowError where there is none."""
    if known := known_versions.read_version(paths, model_name, which):
        return ModelVersion(**known)
    store = known_versions.store_fingerprint(paths)
    version = find(paths, model_name, which, hint="")
    address = tracking_store.redact_password(tracking_store.registry_address(paths))
    if version is None and which == CHAMPION:
        raise WinnowError(
            f"nothing has been promoted yet: {model_name} has no champion at {address}; "
            "run `winnow run`; where no candidate passes the gates, it prints the reasons, and gates to pass"
            f"{'' if tracking_store.is_local_store(paths) else ' (or your account has no role: ask its administrator)'}"
        )
    if version is None:
        raise WinnowError(f"{model_name} at {address} has no version or alias {which!r}; its page in MLflow lists them")
    version_state = KnownVersion(
        number=version.number, sha256=version.sha256, candidate=version.candidate, tags=dict(version.tags)
    )
    known_versions.save_version(paths, store, model_name, which, version_state)
    return version


def fetch(paths: ProjectPaths, model_name: str, version: ModelVersion) -> Path:
    """Return the folder with model.onnx and card.json of a version, downloaded to .winnow/models on first use."""
    folder = paths.state_dir / "models" / model_name / version.number
    if not _is_cached(folder, version):
        _download(paths, model_name, version, folder)
    return folder


def _is_cached(folder: Path, version: ModelVersion) -> bool:
    """Return whether the folder holds the version's files, by content.

    Another server can have the same version numbers for other models. Versions of earlier winnow releases have no
    digest of the card and are downloaded each time.
    """
    digests = {MODEL: version.sha256, CARD: version.tags.get(CARD_SHA256_TAG, "")}
    matches = all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in digests.items())
    return matches and _holds_selected(folder)


def _holds_selected(folder: Path) -> bool:
    """Return whether the file before the refit is present, where the card names its digest."""
    refit, file = DeploymentCard.read(folder).refit, folder / SELECTED / MODEL
    return refit is None or (file.is_file() and sha256_of(file) == refit.selected_sha256)


def _download(paths: ProjectPaths, model: str, version: ModelVersion, target: Path) -> None:
    import mlflow.artifacts

    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with session(paths, "the role reader", ""):
            downloaded = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{model}/{version.number}",
                dst_path=str(temporary),
                tracking_uri=tracking_store.tracking_address(paths),
                registry_uri=tracking_store.registry_address(paths),
            )
        folder = Path(downloaded)
        if not ((folder / MODEL).is_file() and (folder / CARD).is_file()):
            raise ArtifactError(f"{version} of {model} holds no {MODEL} and {CARD}: it was not registered by winnow")
        if version.sha256 and sha256_of(folder / MODEL) != version.sha256:
            raise ArtifactError(f"the {MODEL} of {version} of {model} is not the file that was registered")
        if (digest := version.tags.get(CARD_SHA256_TAG)) and sha256_of(folder / CARD) != digest:
            raise ArtifactError(
                f"the {CARD} of {version} of {model} is not the one that was registered: it was changed or damaged in "
                "MLflow's artifact store; roll back to another version (winnow rollback), or restore the file from a "
                "backup"
            )
        if not _holds_selected(folder):
            raise ArtifactError(f"{version} of {model} lacks {SELECTED}/{MODEL}, the file before its refit")
        shutil.rmtree(target, ignore_errors=True)
        folder.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
