"""Compute the teacher's embedding of every image, once, before pretraining.

It writes embeddings.npy (float16, one row per image, NaN for the test split and for images left out), and the teacher
itself, with a random head: weights.safetensors and architecture.json. Without a teacher (`teacher.weights: none`) it
writes its record alone. An image that the previous result of the step has embedded with the same network, at the same
size and preprocessed in the same way, is not embedded again, as long as the files are those that its record describes.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import winnow.data
import winnow.deploy
import winnow.models
from winnow.config import Config, Teacher
from winnow.config.weights import NO_WEIGHTS
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, load_images
from winnow.deploy.feature_extraction import embed_images, open_features
from winnow.deploy.teacher_embeddings import EMBEDDINGS_FILE, KEYS_FILE, StoredEmbeddings, load_stored_embeddings
from winnow.errors import ArtifactError
from winnow.hardware import has_fast_bf16
from winnow.models.backbones import ARCHITECTURE_FILE, WEIGHTS_FILE, save_model
from winnow.models.image_size_check import check_image_size
from winnow.models.known_weights import weights_details
from winnow.models.weights_lookup import find_weights
from winnow.records import (
    Artifact,
    EmbedDetails,
    EmbedRecord,
    describe_files,
    publish,
    record_digest,
    write_record,
)
from winnow.training.device import default_device

log = logging.getLogger(__name__)

CODE = (winnow.data, winnow.deploy, winnow.models)
"""The packages whose code determines an embedding, besides the weights."""
REUSED_FILES = (EMBEDDINGS_FILE, KEYS_FILE)


def embed(config: Config, data: Path, out: Path, scratch: Path, weights_cache: Path) -> EmbedRecord:
    """Embed the images of training and validation with config.teacher; `weights_cache`: folder of downloaded weights.

    Raises ConfigError for a licence that is not accepted or a size that the network cannot take, ArtifactError where
    the weights are missing or damaged.
    """
    images, inputs = load_images(data), {"data": record_digest(data)}
    return embed_image_set(config.teacher, images, inputs, out, scratch, weights_cache)


def embed_image_set(
    settings: Teacher, images: ImageSet, inputs: dict[str, str], out: Path, scratch: Path, weights_cache: Path
) -> EmbedRecord:
    """Embed the images as `embed` does; `inputs`: what the record names as the source of the images.

    Raises the same errors.
    """
    details = EmbedDetails(weights=None, images=0, dimension=0)
    files: tuple[Artifact, ...] = ()
    with publish(out) as folder:
        if settings.weights != NO_WEIGHTS:
            weights = find_weights(settings.weights, settings.network, weights_cache)
            if not settings.non_commercial:
                weights.check_licence("teacher.non_commercial")
            size = None if settings.input_size == "auto" else settings.input_size
            architecture = weights.architecture(max(1, len(images.classes)), images.image_size, size)
            check_image_size(architecture, "teacher")
            model = weights.load(architecture)
            known = weights_details(weights, architecture)
            save_model(folder, model, architecture.with_known_weights(known))
            log.info("embed: %s at %d pixels", settings.weights, architecture.network_size)
            selected = np.flatnonzero(np.isin(images.split_N, (TRAIN, VALIDATION)))
            features = open_features(model.to(default_device()), architecture, scratch, len(selected))
            conditions = {"weights": known, "code": _code_digest(), **describe_pixels(images)}
            stored = _stored_embeddings(out, conditions)
            rows_ND = embed_images(features, images, selected, scratch, stored)
            shutil.copyfile(scratch / EMBEDDINGS_FILE, folder / EMBEDDINGS_FILE)
            keys_N16 = np.zeros_like(images.keys_N16)
            keys_N16[selected] = images.keys_N16[selected]
            np.save(folder / KEYS_FILE, keys_N16)
            details = EmbedDetails(images=len(selected), dimension=rows_ND.shape[1], **conditions)
            files = describe_files(folder, EMBEDDINGS_FILE, KEYS_FILE, WEIGHTS_FILE, ARCHITECTURE_FILE)
        record = EmbedRecord(
            step="embed",
            name="embed",
            parameters=settings.model_dump(mode="json"),
            inputs=inputs,
            metrics={},
            details=details,
            artifacts=files,
        )
        write_record(folder, record)
    return record


def describe_pixels(images: ImageSet) -> dict[str, Any]:
    """Return the fields of EmbedDetails that say how these images were made from their files."""
    return {"image_size": images.image_size, **asdict(images.preprocessing)}


def _stored_embeddings(out: Path, conditions: dict[str, Any]) -> StoredEmbeddings | None:
    """Return the embeddings of the previous result, if they were made under these conditions and are undamaged.

    `conditions`: fields of EmbedDetails with their values.
    """
    try:
        former = EmbedRecord.read(out)
        if any(getattr(former.details, name) != value for name, value in conditions.items()):
            return None
        written = {file.name: file for file in former.artifacts}
        is_intact = describe_files(out, *REUSED_FILES) == tuple(written[name] for name in REUSED_FILES)
    except (ArtifactError, OSError, KeyError):
        return None
    if not is_intact:
        log.warning("embed: the embeddings in %s are not those that its record describes; all are computed again", out)
        return None
    return load_stored_embeddings(out)


def _code_digest() -> str:
    """Return a digest of the code, and of the precision in which this machine computes."""
    files = (file for package in CODE for folder in package.__path__ for file in sorted(Path(folder).glob("*.py")))
    contents = [file.read_bytes() for file in files]
    precision = f"bfloat16: {has_fast_bf16()}, GPU: {default_device().type == 'cuda'}"
    return hashlib.sha256(b"".join([*contents, precision.encode()])).hexdigest()
