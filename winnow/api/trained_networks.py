"""Data sets and networks that are trained in memory: `read_images`, `pretrain`, `finetune`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from winnow.config import Data, Finetune, NoPretraining, Pretraining, RotNet, SimCLR, check_settings
from winnow.config.section import NO_FILE
from winnow.data.dataset import TRAIN, ImageSet, load_images
from winnow.errors import ConfigError, DataError
from winnow.models.backbones import Architecture
from winnow.models.classifier_head import new_classifier
from winnow.models.network import Network
from winnow.pretraining.backbone_training import pretrain_backbone
from winnow.steps.ingest import ingest_images
from winnow.training.finetuning import initial_model, train_on_labels
from winnow.training.loop import Checkpoint

PRETRAINING: dict[str, type[Pretraining]] = {
    "none": NoPretraining,
    "rotnet": RotNet,
    "simclr": SimCLR,
}
"""Method -> model of its settings."""


def read_images(source: str | Path, store: str | Path, **settings: Any) -> ImageSet:
    """Read a folder or an archive of images, store the pixels in the folder `store`, and return the data set.

    `settings`: keys of the section `data:`, such as image_size, resize, group_by and labels. Raises DataError where the
    images cannot be used.
    """
    path = Path(source)
    raw = {"source": "folder" if path.is_dir() else "archive", "path": str(path), "labels_per_class": "all", **settings}
    with tempfile.TemporaryDirectory() as scratch:
        ingest_images(check_settings(Data, raw, "read_images"), Path(store), Path(scratch))
    return load_images(Path(store))


def pretrain(
    images: ImageSet,
    method: Literal["rotnet", "simclr", "none"] = "rotnet",
    *,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Network:
    """Train a backbone on all training images, without labels; return it with a random head.

    `settings`: keys of the section `pretrain:`, such as backbone, epochs and seed. Raises ConfigError for settings that
    cannot be used, TrainingError when the loss is no longer a number.
    """
    if method not in PRETRAINING:
        raise ConfigError(f"pretrain: there is no method {method!r}; valid: {', '.join(PRETRAINING)}")
    checked = check_settings(PRETRAINING[method], {"method": method, **settings}, "pretrain")
    architecture = Architecture(
        backbone=checked.backbone, num_classes=max(1, len(images.classes)), image_size=images.image_size
    )
    with checkpoint_folder(checkpoints) as scratch:
        state, _ = pretrain_backbone(checked, images, architecture, None, Checkpoint(scratch, "pretrain"))
    return Network(initial_model(architecture, state, checked.seed).eval(), architecture)


def finetune(
    network: Network,
    images: ImageSet,
    *,
    learning_rate: float = 0.03,
    seed: int = 0,
    checkpoints: str | Path | None = None,
    **settings: Any,
) -> Network:
    """Train a copy of the network, with a new head, on all labelled training images; return it.

    `settings`: keys of the section `finetune:`, such as epochs, batch_size and augmentation. Raises ConfigError for
    settings that cannot be used, DataError without a labelled training image.
    """
    raw = {"seeds": [seed], "learning_rates": [learning_rate], "weights": NO_FILE, **settings}
    checked = check_settings(Finetune, raw, "finetune")
    labelled = images.indices(TRAIN, labelled=True)
    if not len(labelled):
        raise DataError("no training image has a label, so there is nothing to fine-tune on")
    architecture = network.architecture.model_copy(update={"num_classes": len(images.classes)})
    model = new_classifier(network.copy().model, len(images.classes), seed)
    with checkpoint_folder(checkpoints) as scratch:
        train_on_labels(checked, images, model, labelled, (seed, learning_rate), Checkpoint(scratch, "finetune"))
    return Network(model, architecture)


@contextmanager
def checkpoint_folder(checkpoints: str | Path | None) -> Iterator[Path]:
    """Yield the folder of checkpoints, or a temporary one."""
    if checkpoints is not None:
        yield Path(checkpoints)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
