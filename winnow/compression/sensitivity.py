"""Which layer bears what: one layer at a time is pruned, or rounded to int8, and nothing is trained.

Pruned: the given share of its channels, those of least magnitude, with all that has to go with them (what is added to
it, the inputs of what reads it). Int8: its weights rounded, and its inputs between the smallest and the largest of 128
images, the rest of the network in float; post-training quantization takes the mean of each image's range unless it is
told otherwise (`ranges`), so a layer with outliers may look worse here. What is told is the share of validation images
that get another answer, for which no label is needed, and the points of top-1 lost where there are labels.

A layer that loses nothing here may still be one too many beside others: losses do not add up. It tells where to look
(Li et al. 2017, arXiv 1608.08710, section 3.2).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from winnow.compression.channel_pruning import macs_by_layer, parameters, prunable_groups
from winnow.compression.fake_quantization import simulated_int8
from winnow.config.backbones import is_prunable
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, spread
from winnow.deploy.batch_inference import network_input, predict_torch
from winnow.eta import duration
from winnow.models.attention import take_heads_apart
from winnow.models.backbones import Architecture, load_model
from winnow.models.layers import layers_of

log = logging.getLogger(__name__)
T = TypeVar("T")

IMAGES, CALIBRATION = 2000, 128
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Loss:
    """What one change costs."""

    changed: float
    """Share of validation images with another answer."""
    points: float | None
    """Points of top-1 lost; None without labels."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one convolution or linear layer."""

    layer: str
    macs: float
    parameters: float
    """Shares of the network's."""
    pruned: Loss | None
    """None where no channel of it can go."""
    together: tuple[str, ...]
    """Layers that lose the same channels."""
    int8: Loss


@dataclass(frozen=True)
class _Trial:
    """The network as it is, and what it answers."""

    model: nn.Module
    architecture: Architecture
    images: ImageSet
    indices: NDArray[np.int64]
    answers_N: NDArray[np.int64]

    def loss(self, model: nn.Module) -> Loss:
        """Of a changed network."""
        answers_N = predict_torch(model, self.images.images_NHWC, self.indices).argmax(1)
        labels_N = self.images.labels_N[self.indices]
        scored_N = labels_N >= 0
        points = None
        if scored_N.any():
            before, after = (float((each == labels_N)[scored_N].mean()) for each in (self.answers_N, answers_N))
            points = (before - after) * 100
        return Loss(float((answers_N != self.answers_N).mean()), points)


def sensitivities(folder: Path, images: ImageSet, share: float = 0.5) -> list[Sensitivity]:
    """Of every layer of a candidate's network, in its own order. Raises ArtifactError for a folder without weights."""
    model, architecture = load_model(folder)
    take_heads_apart(model)
    all_indices = images.indices(VALIDATION)
    indices = all_indices[spread(len(all_indices), IMAGES)]
    answers_N = predict_torch(model, images.images_NHWC, indices).argmax(1)
    trial = _Trial(model, architecture, images, indices, answers_N)
    layers = layers_of(model)
    pruned = dict(_pruned(trial, share)) if is_prunable(architecture.backbone) else {}
    macs, whole = macs_by_layer(model, architecture), parameters(model)
    found = []
    for path, layer in _told(list(layers.items()), "int8", "layers"):
        loss, together = pruned.get(path, (None, ()))
        shares = macs[path] / sum(macs.values()), layer.weight.numel() / whole
        found.append(Sensitivity(path, *shares, loss, together, _rounded(trial, layer)))
    return found


def _pruned(trial: _Trial, share: float) -> Iterator[tuple[str, tuple[Loss, tuple[str, ...]]]]:
    """(layer, (what pruning its group costs, the others of the group)) of all layers whose channels can go."""
    for group in _told(prunable_groups(trial.model, trial.architecture), "pruning", "groups of layers"):
        twin = copy.deepcopy(trial.model)
        group.remove_least(twin, trial.architecture, share)
        loss = trial.loss(twin)
        for path in group.layers:
            yield path, (loss, tuple(other for other in group.layers if other != path))


def _told(work: Sequence[T], what: str, pieces: str) -> Iterator[T]:
    """The pieces of work, with a line on how far it is now and then."""
    began = last = time.monotonic()
    for number, piece in enumerate(work, 1):
        yield piece
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            left = (last - began) / number * (len(work) - number)
            log.info("%s: %d of %d %s, %s left", what, number, len(work), pieces, duration(left))


def _rounded(trial: _Trial, layer: nn.Module) -> Loss:
    pool = trial.images.indices(TRAIN)
    chosen = pool[spread(len(pool), CALIBRATION)]
    x_BCHW = network_input(trial.images.images_NHWC, chosen, torch.device("cpu"))
    trial.model.eval()
    with simulated_int8(trial.model, only=[layer]), torch.no_grad():
        layer.train()  # it alone learns the range of its inputs
        trial.model(x_BCHW)
        return trial.loss(trial.model)


def rows(found: list[Sensitivity]) -> list[dict[str, Any]]:
    """As a table: shares in percent, losses in percent and points."""
    return [
        {
            "layer": each.layer,
            "macs_percent": each.macs * 100,
            "parameters_percent": each.parameters * 100,
            "pruned_changed_percent": None if each.pruned is None else each.pruned.changed * 100,
            "pruned_points_lost": None if each.pruned is None else each.pruned.points,
            "pruned_together_with": " ".join(each.together),
            "int8_changed_percent": each.int8.changed * 100,
            "int8_points_lost": each.int8.points,
        }
        for each in found
    ]
