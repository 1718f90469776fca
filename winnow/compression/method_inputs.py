"""The inputs of every compression method: images, visible labels, its parent, and the networks that teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from winnow.data.dataset import ImageSet
from winnow.deploy.onnx_session import MODEL
from winnow.models.backbones import Architecture, load_architecture, load_backbone, load_model
from winnow.models.network import Network
from winnow.records import PretrainRecord


class NetworkSource(Protocol):
    """A float network that a method reads, from a candidate's folder or from memory."""

    @property
    def architecture(self) -> Architecture:
        """Return the network's description."""
        ...

    def load(self) -> Network:
        """Return a network in eval mode that the caller may change."""
        ...

    def onnx_file(self) -> Path:
        """Return the path of the network's exported file, which must not be changed."""
        ...


@dataclass(frozen=True)
class NetworkFolder:
    """The network in the folder of a candidate."""

    folder: Path

    @property
    def architecture(self) -> Architecture:
        """Read the description. Raises ArtifactError where it is missing or damaged."""
        return load_architecture(self.folder)

    def load(self) -> Network:
        """Read the weights. Raises ArtifactError where a file is missing or damaged."""
        return Network(*load_model(self.folder))

    def onnx_file(self) -> Path:
        """Return the candidate's file."""
        return self.folder / MODEL


def backbone_loader(folder: Path) -> Callable[[], nn.Module] | None:
    """Return a function that loads the backbone in the folder of pretrain; None where its weights are random."""
    record = PretrainRecord.read(folder)
    if record.parameters["method"] == "none" and record.details.start is None:
        return None
    return partial(load_backbone, folder)


@dataclass(frozen=True)
class TeacherCacheFolder:
    """The folder of cached teacher logits, shared by all candidates (winnow/compression/teacher_cache.py)."""

    folder: Path
    teacher: str
    """Digest of the record of the dense network."""


@dataclass(frozen=True)
class MethodInputs:
    """Images, labels and networks of a method."""

    images: ImageSet
    budget: NDArray[np.int64]
    """Indices of the training images whose labels may be used."""
    labels_N: NDArray[np.int64]
    """Class of each image; -1 wherever the label must not be used."""
    parent: NetworkSource
    dense: NetworkSource
    """The root of the candidates, whose outputs a recovery may learn."""
    load_backbone: Callable[[], nn.Module] | None
    """Returns the pretrained backbone, with a random head; None: there is none."""
    scratch: Path
    """Folder for checkpoints."""
    teacher_cache: TeacherCacheFolder | None = None
    """None: teacher logits are not cached."""
    pseudo_labels_NC: NDArray[np.floating] | None = None
    """Class probabilities of the training images by the large network; None: dense was not trained on such."""
    teacher: Path | None = None
    """The folder of embed, with the large network of the section `teacher` and its embeddings; None: there is none."""
