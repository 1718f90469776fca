"""Upload a model to MLflow and register it as a version: the ONNX file, its card, signature and requirements.

mlflow.onnx.log_model is not used: it needs an active run and serializes the model again, while a registered file has
to be the very file that was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.project.paths import ProjectPaths, registered_model_name
from tasks.registry.registered_models import DESCRIPTION_LENGTH, ModelVersion, find_by_digest, to_version
from tasks.tracking.mlflow_client import RESUME_HINT, active_run, experiment_id, session
from tasks.tracking.run_content import DATASET
from tasks.tracking.tags import CANDIDATE_TAG, CARD_SHA256_TAG, DATA_VERSION_TAG, LINEAGE_TAG, SHA256_TAG
from winnow.config import Config
from winnow.deploy.model_card import describe_serving
from winnow.deploy.onnx_session import MODEL
from winnow.evaluation.effective_sample_size import in_groups
from winnow.printable import markdown
from winnow.records import DeploymentCard, json_text, sha256_of
from winnow.refit.deployed_folder import SELECTED, selected_folder

PINNED_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime")
EXAMPLE_IMAGES = 1


def register(
    paths: ProjectPaths, config: Config, folder: Path, card: DeploymentCard, run_id: str | None
) -> ModelVersion:
    """Register folder/model.onnx and its card as a version created by `run_id`, unless the file has a version."""
    from mlflow.exceptions import MlflowException

    model, sha256 = registered_model_name(config), sha256_of(folder / MODEL)
    if existing := find_by_digest(paths, model, sha256):
        return existing
    with session(paths, hint=RESUME_HINT) as client:
        experiment = experiment_id(paths, config)
        try:
            client.create_registered_model(model, description="Compressed classifiers that winnow has promoted.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {
            SHA256_TAG: sha256,
            CARD_SHA256_TAG: hashlib.sha256(json_text(card.content()).encode()).hexdigest(),
            CANDIDATE_TAG: card.name,
            LINEAGE_TAG: " > ".join(card.lineage),
            DATA_VERSION_TAG: card.data_version,
        }
        run = active_run(client, run_id)
        _fail_pending(client, experiment, sha256)
        logged_model = _log_model(client, experiment, folder, card, run, tags)
        model_version = client.create_model_version(
            model,
            f"models:/{logged_model.model_id}",
            logged_model.source_run_id,
            tags,
            description=_description(card)[:DESCRIPTION_LENGTH],
            model_id=logged_model.model_id,
        )
        return to_version(model_version)


def _fail_pending(client: Any, experiment: str, sha256: str) -> None:
    """Mark the unfinished models of an earlier, interrupted registration of this file as failed."""
    query = f"tags.`{SHA256_TAG}` = '{sha256}'"
    for logged_model in client.search_logged_models([experiment], filter_string=query):
        if str(logged_model.status) == "PENDING":
            client.finalize_logged_model(logged_model.model_id, "FAILED")


def _log_model(client: Any, experiment: str, folder: Path, card: DeploymentCard, run: Any, tags: dict[str, str]) -> Any:
    """Log the model like mlflow.onnx.log_model does, but for an ended run or none, and with the unchanged file."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    run_id, params = (run.info.run_id, dict(run.data.params)) if run else (None, {})
    logged_model = client.create_logged_model(
        experiment, card.name, run_id, tags, params, model_type="image-classifier"
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model"
            _save(path, folder, card, logged_model)
            client.log_model_artifacts(logged_model.model_id, str(path))
        if run_id:
            client.log_outputs(run_id, [LoggedModelOutput(logged_model.model_id, 0)])
            metric_origin = {"model_id": logged_model.model_id, "run_id": run_id, "dataset_name": DATASET}
            metric_origin["dataset_digest"] = card.data_version
            timestamp_ms, values = int(time.time() * 1000), {**card.metrics, **card.speed, **_test_figures(card)}
            metrics = [Metric(key, value, timestamp_ms, 0, **metric_origin) for key, value in values.items()]
            client.log_batch(run_id, metrics, synchronous=True)
    except BaseException:
        # This fails as well on a full disk; then the next registration of the file marks it as failed.
        with contextlib.suppress(MlflowException, SQLAlchemyError, OSError):
            client.finalize_logged_model(logged_model.model_id, "FAILED")
        raise
    return client.finalize_logged_model(logged_model.model_id, "READY")


def _test_figures(card: DeploymentCard) -> dict[str, float]:
    """Return the accuracy on the test split with its interval as metrics; {} where it was not measured."""
    figures = card.test.model_dump(include={"top1", "top1_low", "top1_high"}) if card.test else {}
    return {f"test/{key}": value for key, value in figures.items()}


def _save(path: Path, folder: Path, card: DeploymentCard, logged_model: Any) -> None:
    """Write the folder of an MLflow model: signature, example, requirements, the file and its card."""
    import mlflow.onnx
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    side, classes = card.image_size, len(card.classes)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, side, side, 3))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes), name=card.output.name)]),
    )
    mlflow.onnx.save_model(
        onnx.load(str(folder / MODEL)),
        str(path),
        mlflow_model=Model(
            artifact_path=logged_model.artifact_location,
            run_id=logged_model.source_run_id,
            model_uuid=logged_model.model_id,
            model_id=logged_model.model_id,
            metadata={"winnow": "card.json says what the model is and how to feed it"},
        ),
        signature=signature,
        input_example=np.zeros((EXAMPLE_IMAGES, side, side, 3), np.uint8),
        pip_requirements=list(map(_pinned, PINNED_PACKAGES)),
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    # MLflow serializes the model again; the file that was measured has to be the one that serves.
    shutil.copyfile(folder / MODEL, path / MODEL)
    card.write(path)
    if (selected := selected_folder(folder)) != folder:
        (path / SELECTED).mkdir()
        shutil.copyfile(selected / MODEL, path / SELECTED / MODEL)


def _pinned(package: str) -> str:
    """Return the pinned requirement of an installed package; onnxruntime may be installed as onnxruntime-gpu."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package}-gpu=={importlib.metadata.version(f'{package}-gpu')}"


def _description(card: DeploymentCard) -> str:
    metrics, labels, test = card.metrics, card.labels, card.test
    top1 = f"{metrics['quality/top1'] * 100:.1f} % top-1 on validation, " if "quality/top1" in metrics else ""
    if test:
        top1 += f"{test.top1 * 100:.1f} % on test ({test.top1_low * 100:.1f} to {test.top1_high * 100:.1f}), "
    warnings = [f"**Warning:** {markdown(warning)}.\n" for warning in (test.warnings if test else ())]
    note = markdown(card.refit.note) if card.refit else ""
    refitted = [f"Refitted on training and validation labels: {note}."] if note else []
    known = [
        f"Known weights: {markdown(weights.name)}, licence {markdown(weights.licence)}."
        for weights in card.known_weights
    ]
    name, lineage = markdown(card.name), markdown(" > ".join(card.lineage))
    return "\n".join(
        [
            *warnings,
            f"**{name}** ({lineage}): {top1}{metrics['size/mb']:.2f} MB, "
            f"{labels.training} labels for training, {labels.choosing}{in_groups(labels.choosing_groups)} "
            "for selection.",
            *refitted,
            *known,
            f"Serve with {describe_serving(card.serving)}. {markdown(card.why)}",
        ]
    )
