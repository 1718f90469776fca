"""Features of images for choosing and checking labels: the teacher's embeddings, or those of the pretrained backbone.

Both come from steps that use no labels. Neither is ever read for the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from winnow.config import Config
from winnow.config.weights import NO_WEIGHTS
from winnow.data.dataset import TEST, ImageSet, load_images
from winnow.deploy.batch_inference import embed
from winnow.deploy.teacher_embeddings import EMBEDDINGS_FILE, load_embeddings
from winnow.errors import ArtifactError
from winnow.records import RECORD, AnyRecord, EmbedRecord, PretrainRecord, record_digest
from winnow.training.device import default_device

DATA, EMBED, PRETRAIN = "data", "embed", "pretrain"
STAGES = {DATA: "ingest", EMBED: EMBED, PRETRAIN: PRETRAIN}
"""Folder below artifacts/ -> the DVC stage that writes it."""


@dataclass(frozen=True)
class ImageFeatures:
    """Features of some images, and the network that they come from."""

    rows_MD: NDArray[np.float32]
    network: str
    """The network, in words for users."""
    folder: str
    """The folder below artifacts/ of the step that made them."""
    is_random: bool = False
    """True where the network has random weights, so that the features mean little."""


def load_data(artifacts: Path) -> ImageSet:
    """Return the ingested images. Raises ArtifactError, with the command that makes them, where they are missing."""
    _check_made(artifacts / DATA)
    return load_images(artifacts / DATA)


def load_features(config: Config, images: ImageSet, artifacts: Path, indices_M: NDArray[np.int64]) -> ImageFeatures:
    """Return features as `read_features` does, after a check that they belong to these images and settings.

    Raises ArtifactError where the step that makes the features was not run, or was run on other images or with other
    settings; ValueError for an image of the test split.
    """
    if config.teacher.weights != NO_WEIGHTS:
        folder = artifacts / EMBED
        _check_made(folder)
        _check_current(EmbedRecord.read(folder), config.teacher.model_dump(mode="json"), artifacts, folder)
        if not (folder / EMBEDDINGS_FILE).is_file():
            raise ArtifactError(f"{folder / EMBEDDINGS_FILE} is missing; {_remedy(folder)}")
    else:
        folder = artifacts / PRETRAIN
        _check_made(folder)
        _check_current(PretrainRecord.read(folder), config.pretrain.model_dump(mode="json"), artifacts, folder)
    return read_features(config, images, artifacts, indices_M)


def read_features(
    config: Config,
    images: ImageSet,
    artifacts: Path,
    indices_M: NDArray[np.int64],
    device: torch.device | None = None,
) -> ImageFeatures:
    """Return the features of the images at `indices_M`: of the teacher where there is one, else of the backbone.

    `artifacts`: the folder of the steps' outputs. `device`: of the backbone; None: the GPU where there is one. Raises
    ValueError for an image of the test split.
    """
    if (images.split_N[indices_M] == TEST).any():
        raise ValueError("images of the test split have no features here: only the report reads them")
    if config.teacher.weights != NO_WEIGHTS:
        rows_MD = np.asarray(load_embeddings(artifacts / EMBED)[indices_M], dtype=np.float32)
        return ImageFeatures(rows_MD, f"the teacher {config.teacher.weights}", EMBED)
    return _backbone_features(config, images, artifacts / PRETRAIN, indices_M, device or default_device())


def _backbone_features(
    config: Config, images: ImageSet, folder: Path, indices_M: NDArray[np.int64], device: torch.device
) -> ImageFeatures:
    from winnow.models.backbones import load_architecture, load_backbone  # torchvision takes seconds to import

    settings = config.pretrain
    is_random = settings.method == "none" and settings.start == NO_WEIGHTS
    origin = (
        "random weights"
        if is_random
        else " and ".join(name for name in (settings.start, settings.method) if name not in (NO_WEIGHTS, "none"))
    )
    network = f"the backbone {load_architecture(folder).backbone} before fine-tuning ({origin})"
    model = load_backbone(folder).to(device)
    rows_MD = embed(model, images.images_NHWC, indices_M).numpy()
    return ImageFeatures(rows_MD, network, folder.name, is_random)


def _check_made(folder: Path) -> None:
    if not (folder / RECORD).is_file():
        raise ArtifactError(f"{folder} does not exist or is incomplete; {_remedy(folder)}")


def _check_current(record: AnyRecord, parameters: dict[str, object], artifacts: Path, folder: Path) -> None:
    """Raise ArtifactError where the step was run on other images, or with other settings than params.yaml has now."""
    if record.inputs.get("data") != record_digest(artifacts / DATA):
        raise ArtifactError(f"{folder} was made from other images than {artifacts / DATA}; {_remedy(folder)}")
    changed = sorted(key for key in record.parameters | parameters if record.parameters.get(key) != parameters.get(key))
    if changed:
        section = "teacher" if folder.name == EMBED else PRETRAIN
        keys = ", ".join(f"{section}.{key}" for key in changed)
        raise ArtifactError(
            f"{folder} was made with other settings than params.yaml has now ({keys}); {_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    return f"run `dvc repro {STAGES[folder.name]}`, or `winnow run` for all steps"
