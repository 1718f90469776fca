"""Models in MLflow's registry: versions in ONNX form, aliases that say which one serves, and the reasons why.

    champion      serves                          previous      served before; `winnow rollback` goes back to it
    challenger    the last winner of a run, whether it became champion or not

A version is told by the sha256 of its model.onnx (tag `winnow.sha256`): the same file is registered once. The tag
`winnow.card_sha256` is that of its card, so that nobody serves classes that were renamed on the way. Setting an
alias is one write of MLflow's and the last one stands, so callers look again just before they set one. What decides is
not here (tasks/registry/promotion.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.tracking import tracked_runs
from tasks.tracking.mlflow_client import KEPT, answering, connect, experiment_id, living_run
from tasks.tracking.run_content import DATASET
from winnow.config import Config
from winnow.deploy.bundle import how_served
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ArtifactError, WinnowError
from winnow.evaluation.effective_sample_size import in_groups
from winnow.printable import markdown
from winnow.records import json_text, read_json, sha256_of, write_json
from winnow.refit.deployed_folder import SELECTED, selected_folder

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
CARD = "card.json"
SHA256, CARD_SHA256, CANDIDATE = "winnow.sha256", "winnow.card_sha256", "winnow.candidate"
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers for a model, an alias or a version that is not there."""
FORBIDDEN = "PERMISSION_DENIED"
PINNED = ("mlflow", "numpy", "onnx", "onnxruntime")
EXAMPLE_IMAGES = 1


@dataclass(frozen=True)
class Version:
    """A registered version."""

    number: str
    sha256: str
    candidate: str
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"version {self.number} ({self.candidate})"


def find(places: ProjectPaths, model: str, which: str, kept: str = KEPT) -> Version | None:
    """The version with this alias or number. `kept`: as in `answering`."""
    from mlflow.exceptions import MlflowException

    with answering(places, "the role reader", kept):
        client = connect(places)
        try:
            if which.isdigit():
                return _version(client.get_model_version(model, which))
            return _version(client.get_model_version_by_alias(model, which))
        except MlflowException as error:
            if error.error_code in ABSENT or (error.error_code == FORBIDDEN and _is_unseen(client, model)):
                return None
            raise


def _is_unseen(client: Any, model: str) -> bool:
    """Whether there is no such model for this account: a server with accounts refuses to speak of one that is not."""
    return not client.search_registered_models(f"name = '{model}'", max_results=1)


def find_file(places: ProjectPaths, model: str, sha256: str) -> Version | None:
    """The version that holds this very file."""
    with answering(places):
        wanted = f"name = '{model}' and tags.`{SHA256}` = '{sha256}'"
        hits = connect(places).search_model_versions(wanted, max_results=1)
        return _version(hits[0]) if hits else None


def _version(found: Any) -> Version:
    tags = dict(found.tags)
    return Version(str(found.version), tags.get(SHA256, ""), tags.get(CANDIDATE, "?"), tags)


def register(
    places: ProjectPaths, config: Config, folder: Path, card: Mapping[str, Any], run_id: str | None
) -> Version:
    """A version of folder/model.onnx with `card` beside it, made by `run_id`; the one that is there already, if any."""
    from mlflow.exceptions import MlflowException

    model, sha256 = registered_model_name(config), sha256_of(folder / MODEL)
    if known := find_file(places, model, sha256):
        return known
    with answering(places):
        client, experiment = connect(places), experiment_id(places, config)
        try:
            client.create_registered_model(model, description="Compressed classifiers that winnow has promoted.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {
            SHA256: sha256,
            CARD_SHA256: hashlib.sha256(json_text(dict(card)).encode()).hexdigest(),
            CANDIDATE: str(card["name"]),
            "winnow.lineage": " > ".join(card["lineage"]),
            "winnow.data_version": str(card["data_version"]),
        }
        run = living_run(client, run_id)
        _give_up_pending(client, experiment, sha256)
        logged = _log_model(client, experiment, folder, card, run, tags)
        made = client.create_model_version(
            model,
            f"models:/{logged.model_id}",
            logged.source_run_id,
            tags,
            description=_description(card),
            model_id=logged.model_id,
        )
        return _version(made)


def _give_up_pending(client: Any, experiment: str, sha256: str) -> None:
    """Close what an earlier registration of this file left half-made: its process was killed, or the disk was full."""
    wanted = f"tags.`{SHA256}` = '{sha256}'"
    for logged in client.search_logged_models([experiment], filter_string=wanted):
        if str(logged.status) == "PENDING":
            client.finalize_logged_model(logged.model_id, "FAILED")


def _log_model(
    client: Any, experiment: str, folder: Path, card: Mapping[str, Any], run: Any, tags: dict[str, str]
) -> Any:
    """What mlflow.onnx.log_model does, but for a run that has ended (or none), and with the file's very bytes."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    run_id, params = (run.info.run_id, dict(run.data.params)) if run else (None, {})
    logged = client.create_logged_model(experiment, card["name"], run_id, tags, params, model_type="image-classifier")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model"
            _save(path, folder, card, logged)
            client.log_model_artifacts(logged.model_id, str(path))
        if run_id:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
            about = {"model_id": logged.model_id, "run_id": run_id, "dataset_name": DATASET}
            about["dataset_digest"] = card["data_version"]
            now, figures = int(time.time() * 1000), {**card["metrics"], **card["speed"], **_test_figures(card)}
            metrics = [Metric(key, value, now, 0, **about) for key, value in figures.items()]
            client.log_batch(run_id, metrics, synchronous=True)
    except BaseException:
        # On a full disk this fails, too: the next registration of the file closes it.
        with contextlib.suppress(MlflowException, SQLAlchemyError, OSError):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return client.finalize_logged_model(logged.model_id, "READY")


def _test_figures(card: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy on the test split with its interval; nothing where it was not measured."""
    keys = ("top1", "top1_low", "top1_high")
    return {f"test/{key}": float(card["test"][key]) for key in keys if key in card.get("test", {})}


def _save(path: Path, folder: Path, card: Mapping[str, Any], logged: Any) -> None:
    """The folder that MLflow serves: signature, example, requirements, the file and its card."""
    import mlflow.onnx
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    side, classes = card["image_size"], len(card["classes"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, side, side, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes), name=card["output"]["name"])]),
    )
    mlflow.onnx.save_model(
        onnx.load(str(folder / MODEL)),
        str(path),
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            run_id=logged.source_run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            metadata={"winnow": "card.json says what the model is and how to feed it"},
        ),
        signature=signature,
        input_example=np.zeros((EXAMPLE_IMAGES, side, side, 3), np.uint8),
        pip_requirements=list(map(_pinned, PINNED)),
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    # MLflow writes the model anew; the file that was measured is the one to serve.
    shutil.copyfile(folder / MODEL, path / MODEL)
    write_json(path / CARD, dict(card))
    if (selected := selected_folder(folder)) != folder:
        (path / SELECTED).mkdir()
        shutil.copyfile(selected / MODEL, path / SELECTED / MODEL)


def _pinned(package: str) -> str:
    """With its version; ONNX Runtime for GPUs comes under another name in place of the other."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}-gpu=={importlib.metadata.version(f'{package}-gpu')}"


def _description(card: Mapping[str, Any]) -> str:
    metrics, labels, serving = card["metrics"], card["labels"], card["serving"]
    top1 = f"{metrics['quality/top1'] * 100:.1f} % top-1 on validation, " if "quality/top1" in metrics else ""
    test = card.get("test", {})
    if test:
        top1 += f"{test['top1'] * 100:.1f} % on test ({test['top1_low'] * 100:.1f} to {test['top1_high'] * 100:.1f}), "
    warnings = [f"**Warning:** {markdown(warning)}.\n" for warning in test.get("warnings", [])]
    note = markdown(card["refit"]["note"]) if "refit" in card else ""
    refitted = [f"Refitted on training and validation labels: {note}."] if note else []
    name, lineage = markdown(card["name"]), markdown(" > ".join(card["lineage"]))
    return "\n".join(
        [
            *warnings,
            f"**{name}** ({lineage}): {top1}{metrics['size/mb']:.2f} MB, "
            f"{labels['training']} labels for training, {labels['choosing']}{in_groups(labels.get('choosing_groups'))} "
            "for choosing.",
            *refitted,
            f"Serve with {how_served(serving)}. {markdown(card['why'])}",
        ]
    )


def set_alias(places: ProjectPaths, model: str, alias: str, number: str | None) -> None:
    """Point an alias at a version; None takes it away."""
    with answering(places):
        client = connect(places)
        if number is None:
            client.delete_registered_model_alias(model, alias)
        else:
            client.set_registered_model_alias(model, alias, number)


def note(places: ProjectPaths, model: str, version: Version, tags: Mapping[str, str | None], line: str = "") -> None:
    """Write tags (None takes one away) and a line of the description onto a version."""
    with answering(places):
        client = connect(places)
        for key, value in tags.items():
            if value is not None:
                client.set_model_version_tag(model, version.number, key, value)
            elif key in version.tags:
                client.delete_model_version_tag(model, version.number, key)
        if line:
            before = client.get_model_version(model, version.number).description or ""
            client.update_model_version(model, version.number, f"{before}\n- {markdown(line)}".strip())


def get(places: ProjectPaths, model_name: str, which: str) -> Version:
    """The version with this alias or number; raises WinnowError where there is none."""
    found = find(places, model_name, which, kept="")
    where = tracked_runs.without_password(tracked_runs.registry_address(places))
    if found is None and which == CHAMPION:
        raise WinnowError(
            f"nothing has been promoted yet: {model_name} has no champion at {where}; "
            "run `winnow run`; where no candidate passes its gates, it ends with why, and with gates one would pass"
            f"{'' if tracked_runs.is_own(places) else ' (or your account has no role there: ask its administrator)'}"
        )
    if found is None:
        raise WinnowError(f"{model_name} at {where} has no version or alias {which!r}; its page in MLflow lists them")
    return found


def fetch(places: ProjectPaths, model_name: str, version: Version) -> Path:
    """A folder with the model.onnx and card.json of a version, kept in .winnow/models."""
    kept = places.state_dir / "models" / model_name / version.number
    if not _is_kept(kept, version):
        _download(places, model_name, version, kept)
    return kept


def _is_kept(kept: Path, version: Version) -> bool:
    """Compared by content: another or emptied server gives the same numbers to other models.

    A version from before cards had digests is fetched each time.
    """
    wanted = {MODEL: version.sha256, CARD: version.tags.get(CARD_SHA256, "")}
    whole = all((kept / name).is_file() and sha256_of(kept / name) == digest for name, digest in wanted.items())
    return whole and _holds_selected(kept)


def _holds_selected(folder: Path) -> bool:
    """Whether the file before the refit, which the card of a refitted one names by its digest, lies there as well."""
    wanted = read_json(folder / CARD).get("refit", {}).get("selected_sha256")
    file = folder / SELECTED / MODEL
    return wanted is None or (file.is_file() and sha256_of(file) == wanted)


def _download(places: ProjectPaths, model: str, version: Version, kept: Path) -> None:
    import mlflow.artifacts

    temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        with answering(places, "the role reader", ""):
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{model}/{version.number}",
                dst_path=str(temporary),
                tracking_uri=tracked_runs.address(places),
                registry_uri=tracked_runs.registry_address(places),
            )
        folder = Path(got)
        if not ((folder / MODEL).is_file() and (folder / CARD).is_file()):
            raise ArtifactError(f"{version} of {model} holds no {MODEL} and {CARD}: it was not registered by winnow")
        if version.sha256 and sha256_of(folder / MODEL) != version.sha256:
            raise ArtifactError(f"the {MODEL} of {version} of {model} is not the file that was registered")
        if (wanted := version.tags.get(CARD_SHA256)) and sha256_of(folder / CARD) != wanted:
            raise ArtifactError(
                f"the {CARD} of {version} of {model} is not the one that was registered: somebody changed it, or its "
                "file is damaged, where MLflow keeps it; put another version in its place (winnow rollback), or bring "
                "that file back from a backup"
            )
        if not _holds_selected(folder):
            raise ArtifactError(f"{version} of {model} lacks {SELECTED}/{MODEL}, the file before its refit")
        shutil.rmtree(kept, ignore_errors=True)
        folder.replace(kept)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
