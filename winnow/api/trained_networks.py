"""Data sets, teachers and networks that are trained in memory: `read_images`, `embed`, `pretrain`, `finetune`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from winnow.api.argument_checks import check_folder, check_images, check_network
from winnow.config import (
    Data,
    DistillEmbeddings,
    Finetune,
    NoPretraining,
    Pretraining,
    Propagation,
    RotNet,
    SimCLR,
    UnlabelledTraining,
    check_settings,
)
from winnow.config import Teacher as TeacherSettings
from winnow.config.section import NO_FILE
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, load_images
from winnow.deploy.teacher_embeddings import KEYS_FILE, load_targets
from winnow.errors import ArtifactError, ConfigError, DataError
from winnow.models.backbones import load_architecture
from winnow.models.classifier_head import new_classifier
from winnow.models.network import Network
from winnow.pretraining.backbone_training import pretrain_backbone
from winnow.records import EmbedRecord, read_record
from winnow.steps.embed import describe_pixels, embed_image_set
from winnow.steps.ingest import ingest_images
from winnow.steps.pretrain import prepare_start
from winnow.training.checkpoint import Checkpoint
from winnow.training.finetuning import initial_model, train_on_labels
from winnow.training.unlabelled_images import UnlabelledTrainer

PRETRAINING: dict[str, type[Pretraining]] = {
    "distill": DistillEmbeddings,
    "none": NoPretraining,
    "rotnet": RotNet,
    "simclr": SimCLR,
}
"""Method -> model of its settings."""
KEYS_OF_RUNS = ("cross_validation", "folds", "learning_rates", "seeds", "weights")
"""Keys of the section `finetune:` that `winnow run` alone uses."""
DATA_KEYS_OF_RUNS = ("colour", "fetch", "labels_per_class", "mirrors", "scale", "up")
"""Keys of the section `data:` that `winnow run` alone uses."""


@dataclass(frozen=True)
class Teacher:
    """A large network with known weights, and its embeddings of the images of a data set."""

    folder: Path
    """The folder that `embed` has written."""

    def folder_for(self, images: ImageSet) -> Path:
        """Return the folder. Raises DataError where its embeddings are of other images."""
        keys_N16, details = np.load(self.folder / KEYS_FILE), EmbedRecord.read(self.folder).details
        is_embedded_N = np.isin(images.split_N, (TRAIN, VALIDATION))
        pixels = describe_pixels(images)
        is_same = details.model_dump(include=set(pixels)) == pixels and len(keys_N16) == len(images.keys_N16)
        if not is_same or (keys_N16 != images.keys_N16)[is_embedded_N].any():
            raise DataError(f"the embeddings in {self.folder} are of other images; pass these images to winnow.embed")
        return self.folder


def read_images(source: str | Path, store: str | Path, **settings: Any) -> ImageSet:
    """Read a folder or an archive of images, store the pixels in the folder `store`, and return the data set.

    `settings`: keys of the section `data:`, such as image_size, resize, group_by and labels, without those that change
    no pixels (pass `augmentation` to `pretrain` and `finetune`, and call `limit_labels`). Raises DataError where the
    images cannot be used, or `store` holds anything but an earlier data set, which is replaced.
    """
    if unused := [key for key in DATA_KEYS_OF_RUNS if key in settings]:
        raise ConfigError(
            f"read_images: winnow run alone uses {', '.join(unused)}; pass augmentation={{...}} to pretrain and "
            "finetune, and call limit_labels"
        )
    path = Path(source)
    raw = {"source": "folder" if path.is_dir() else "archive", "path": str(path), "labels_per_class": "all", **settings}
    data = check_settings(Data, raw, "read_images")
    if Path(data.path).resolve().is_relative_to(Path(store).resolve()):
        raise DataError(f"read_images: {store} would be replaced, and holds {data.path}; name a new folder")
    _check_store(Path(store), "ingest", "read_images")
    with tempfile.TemporaryDirectory() as scratch:
        ingest_images(data, Path(store), Path(scratch))
    return load_images(Path(store))


def _check_store(store: Path, step: str, function: str) -> None:
    """Raise DataError where `store`, which will be replaced, is neither an empty folder nor a result of this step."""
    if not store.exists() or (store.is_dir() and not any(store.iterdir())):
        return
    try:
        is_earlier = read_record(store).step == step
    except ArtifactError:
        is_earlier = False
    if not is_earlier:
        raise DataError(f"{function}: {store} exists and is no earlier result of {function}; name a new folder")


def embed(
    images: ImageSet,
    store: str | Path,
    weights: str = "package:efficientnet-lite0",
    *,
    weights_cache: str | Path | None = None,
    **settings: Any,
) -> Teacher:
    """Compute the embeddings of all training and validation images, and store them in the folder `store`.

    Images that the folder holds already are not embedded again. `weights`: their name, as `teacher.weights` in
    params.yaml. `weights_cache`: the folder of downloaded weights, by default winnow's in the user's cache. `settings`:
    keys of the section `teacher:`. Raises ConfigError for settings or a licence that cannot be used, ArtifactError
    where the weights are missing or damaged, DataError where `store` holds anything but earlier embeddings.
    """
    checked = check_settings(TeacherSettings, {"weights": weights, **settings}, "embed")
    _check_store(Path(store), "embed", "embed")
    with tempfile.TemporaryDirectory() as scratch:
        embed_image_set(checked, images, {}, Path(store), Path(scratch), _weights_folder(weights_cache))
    return Teacher(Path(store))


def pretrain(
    images: ImageSet,
    method: Literal["rotnet", "simclr", "distill", "none"] = "rotnet",
    *,
    teacher: Teacher | None = None,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Network:
    """Train a backbone on all training images, without labels; return it with a random head.

    `teacher`: that of method `distill`. `settings`: keys of the section `pretrain:`, such as backbone, start, epochs
    and seed. Raises ConfigError for settings that cannot be used, TrainingError when the loss is no longer a number.
    """
    if method not in PRETRAINING:
        raise ConfigError(f"pretrain: there is no method {method!r}; valid: {', '.join(PRETRAINING)}")
    checked = check_settings(PRETRAINING[method], {"method": method, **settings}, "pretrain")
    start = prepare_start(checked, images, teacher.folder_for(images) if teacher else None, _weights_folder(None))
    with checkpoint_folder(checkpoints) as scratch:
        checkpoint = Checkpoint(scratch, "pretrain")
        state, _ = pretrain_backbone(
            checked, images, start.architecture, None, checkpoint, start=start.weights, targets=start.targets
        )
    return Network(initial_model(start.architecture, state, checked.seed).eval(), start.architecture)


def finetune(
    network: Network,
    images: ImageSet,
    *,
    learning_rate: float = 0.03,
    seed: int = 0,
    teacher: Teacher | None = None,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Network:
    """Train a copy of the network, with a new head, on all labelled training images; return it.

    `settings`: keys of the section `finetune:`, such as epochs, batch_size and augmentation. With `unlabelled`, the
    network is then trained on images without labels, whether that helps or not; by `propagation` with the embeddings of
    `teacher`, if given. Raises ConfigError for settings that cannot be used, DataError without a labelled training
    image, or with labels of one class alone for such a propagation.
    """
    if unused := [key for key in KEYS_OF_RUNS if key in settings]:
        raise ConfigError(f"finetune: winnow run alone uses {', '.join(unused)}; pass learning_rate, seed and network")
    raw = {"seeds": [seed], "learning_rates": [learning_rate], "weights": NO_FILE, **settings}
    checked = check_settings(Finetune, raw, "finetune")
    check_images(check_network(network, "finetune"), images, "finetune")
    labelled = images.indices(TRAIN, labelled=True)
    if not len(labelled):
        raise DataError("no training image has a label, so there is nothing to fine-tune on")
    if isinstance(checked.unlabelled, Propagation) and teacher is not None:
        _check_two_classes(images, labelled)
    architecture = network.architecture.model_copy(update={"num_classes": len(images.classes)})
    model = new_classifier(network.copy().model, len(images.classes), seed)
    with checkpoint_folder(checkpoints) as scratch:
        train_on_labels(checked, images, model, labelled, (seed, learning_rate), Checkpoint(scratch, "finetune"))
        if isinstance(checked.unlabelled, UnlabelledTraining) and len(labelled) < len(images.indices(TRAIN)):
            targets = None
            if isinstance(checked.unlabelled, Propagation) and teacher is not None:
                targets = load_targets(teacher.folder_for(images), images)
                architecture = architecture.with_known_weights(*load_architecture(teacher.folder).known_weights)
            train_on = UnlabelledTrainer(checked.unlabelled, images, targets, seed)
            train_on(model, labelled, Checkpoint(scratch, "unlabelled"))
    return Network(model, architecture)


def pseudo_labels(images: ImageSet, teacher: Teacher, *, seed: int = 0, **settings: Any) -> NDArray[np.float32]:
    """Return class probabilities (N, C) of all images, by label propagation on the embeddings of `teacher`.

    Labelled training images have probability 1 of their class, images of the test split 0 of all. `settings`: keys of
    `finetune.unlabelled` for the method propagation. Raises DataError without labelled training images of two classes.
    """
    checked = check_settings(Propagation, {"method": "propagation", **settings}, "pseudo_labels")
    labelled = images.indices(TRAIN, labelled=True)
    if not len(labelled):
        raise DataError("no training image has a label, so there is nothing to propagate")
    _check_two_classes(images, labelled)
    targets = load_targets(teacher.folder_for(images), images)
    probabilities_NC = UnlabelledTrainer(checked, images, targets, seed).pseudo_labels(labelled)
    assert probabilities_NC is not None, "the method is propagation, with a teacher"
    return probabilities_NC


def _check_two_classes(images: ImageSet, labelled: NDArray[np.int64]) -> None:
    """Raise DataError where all labels are of one class."""
    if len(np.unique(images.labels_N[labelled])) < 2:
        raise DataError(
            "all labelled training images are of one class, so none can be propagated; label images of another class"
        )


def _weights_folder(cache: str | Path | None) -> Path:
    """Return the folder of downloaded weights."""
    return Path(cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "winnow")


@contextmanager
def checkpoint_folder(checkpoints: str | Path | None) -> Iterator[Path]:
    """Yield the folder of checkpoints, or a temporary one."""
    if checkpoints is not None:
        yield check_folder(checkpoints, "checkpoints")
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
