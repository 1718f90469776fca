"""Compressed networks in memory, one function for each method."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from winnow.api.argument_checks import check_classes, check_images, check_network
from winnow.api.trained_networks import Teacher, checkpoint_folder
from winnow.compression import run_method
from winnow.compression.method_inputs import MethodInputs
from winnow.config import (
    Candidate,
    Cluster,
    Distill,
    Factorize,
    Probe,
    Prune,
    Quantize,
    Sparsify,
    TrainedCandidate,
    check_settings,
)
from winnow.data.dataset import TRAIN, ImageSet
from winnow.data.splits import visible_labels
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.models.backbones import Architecture, load_model
from winnow.models.network import Network, OnnxNetwork

RECOVERY: dict[str, Any] = {"epochs": 20, "batch_size": 64, "min_steps": 1200, "optimiser": {"learning_rate": 0.1}}
"""Settings of recovery that have no default in the configuration, as in params.yaml as shipped."""


def prune(network: Network, images: ImageSet, **options: Any) -> Network:
    """Return a copy of the network without some of its channels, trained again. Example: `remove={"channels": 0.3}`.

    Options of this and the other methods: the method's keys in params.yaml; `recovery`, a dict of keys of that section;
    `teacher`, by default the network itself; `backbone`, the pretrained network for `hint: pretrained`; `embeddings`,
    the result of `embed`, for `hint: embeddings`; `pseudo_labels`, the result of `pseudo_labels`, to learn in place of
    the teacher's outputs; `checkpoints`, a folder from which an interrupted training resumes. Raises ConfigError for
    settings that cannot be used, TrainingError when the loss is no longer a number.
    """
    return _compress_network(Prune, network, images, options)


def sparsify(network: Network, images: ImageSet, **options: Any) -> Network:
    """Return a copy with a share of zero weights, trained again. Example: `sparsity=0.8`. Options: see `prune`."""
    return _compress_network(Sparsify, network, images, options)


def factorize(network: Network, images: ImageSet, **options: Any) -> Network:
    """Return a copy whose wide layers are pairs of low rank, trained again. Example: `remove={"macs": 0.5}`.

    Options: see `prune`.
    """
    return _compress_network(Factorize, network, images, options)


def cluster(network: Network, images: ImageSet, **options: Any) -> Network:
    """Return a copy with few distinct weights per layer, trained again. Example: `values=16`. Options: see `prune`."""
    return _compress_network(Cluster, network, images, options)


def distill(network: Network, images: ImageSet, **options: Any) -> Network:
    """Return a student, trained on the outputs of the network. Example: `student="resnet8", width=0.5`.

    Options: see `prune`.
    """
    return _compress_network(Distill, network, images, options)


def quantize(network: Network, images: ImageSet, **options: Any) -> OnnxNetwork:
    """Return the network in int8 as an ONNX file. Default: static quantization; `scheme="qat"` trains, too.

    Options: see `prune`.
    """
    compressed = _compress(Quantize, network, images, options)
    assert isinstance(compressed, OnnxNetwork)
    return compressed


def probe(teacher: Teacher, images: ImageSet, **options: Any) -> Network:
    """Return the teacher with a linear head that is fitted to the labels of the training split.

    `options`: keys of the method `probe` in params.yaml. Raises ConfigError for settings that cannot be used,
    DataError where the labels are of fewer than two classes.
    """
    network = Network(*load_model(teacher.folder))
    return _compress_network(Probe, network, images, {**options, "embeddings": teacher})


@dataclass(frozen=True)
class _NetworkInMemory:
    """A network as the source of a method's parent or teacher; its file is exported when it is needed."""

    network: Network
    folder: Path

    @property
    def architecture(self) -> Architecture:
        return self.network.architecture

    def load(self) -> Network:
        return self.network.copy()

    def onnx_file(self) -> Path:
        file = self.folder / MODEL
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            export_onnx(self.network.copy().model, self.architecture, file)
        return file


def _compress_network(method: type[Candidate], network: Network, images: ImageSet, options: dict[str, Any]) -> Network:
    compressed = _compress(method, network, images, options)
    assert isinstance(compressed, Network)
    return compressed


def _compress(
    method: type[Candidate], network: Network, images: ImageSet, options: dict[str, Any]
) -> Network | OnnxNetwork:
    name = method.__name__.lower()
    settings = dict(options)
    teacher, backbone = settings.pop("teacher", network), settings.pop("backbone", None)
    checkpoints, embeddings = settings.pop("checkpoints", None), settings.pop("embeddings", None)
    pseudo_labels_NC = settings.pop("pseudo_labels", None)
    if issubclass(method, TrainedCandidate) or "recovery" in settings:
        settings["recovery"] = RECOVERY | settings.get("recovery", {})
    checked = check_settings(method, {"from": "dense", "method": name, **settings}, name)
    for argument, passed in ((name, network), ("teacher", teacher), ("backbone", backbone)):
        if passed is not None:
            check_images(check_network(passed, argument), images, argument)
            if argument != "backbone" and method is not Probe:
                check_classes(passed, images, argument)
    if pseudo_labels_NC is not None:
        pseudo_labels_NC = np.asarray(pseudo_labels_NC, dtype=np.float32)
        _check_pseudo_labels(pseudo_labels_NC, checked, images, has_embeddings=embeddings is not None)
    labelled = images.indices(TRAIN, labelled=True)

    def load_backbone() -> nn.Module:
        assert isinstance(backbone, Network)
        return backbone.copy().model

    with checkpoint_folder(checkpoints) as scratch, tempfile.TemporaryDirectory() as temporary:
        inputs = MethodInputs(
            images,
            labelled,
            visible_labels(images, labelled),
            parent=_NetworkInMemory(network, Path(temporary) / "parent"),
            dense=_NetworkInMemory(teacher, Path(temporary) / "teacher"),
            load_backbone=load_backbone if backbone is not None else None,
            scratch=scratch,
            pseudo_labels_NC=pseudo_labels_NC,
            teacher=embeddings.folder_for(images) if embeddings is not None else None,
        )
        return run_method(checked, inputs)[0]


def _check_pseudo_labels(
    probabilities_NC: NDArray[np.float32], settings: Candidate, images: ImageSet, *, has_embeddings: bool
) -> None:
    """Raise ConfigError for pseudo-labels that the method would not learn, or that are no class probabilities."""
    recovery, expected = settings.training, (len(images.labels_N), len(images.classes))
    if recovery is None or recovery.teacher != "auto":
        raise ConfigError("pseudo_labels are for a method that trains, with recovery teacher: auto; leave them out")
    if not has_embeddings:
        raise ConfigError("pseudo_labels need embeddings=, the result of `winnow.embed` that they were made from")
    if probabilities_NC.shape != expected:
        raise ConfigError(f"pseudo_labels have shape {probabilities_NC.shape}, expected {expected}")
    if not np.allclose(probabilities_NC[images.indices(TRAIN)].sum(1), 1, atol=0.01):
        raise ConfigError("pseudo_labels of training images must sum to 1; winnow.pseudo_labels returns such")
