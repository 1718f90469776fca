"""Per-layer sensitivity: prune or quantize one layer at a time, without training, and measure the change.

Pruning removes the given share of a layer's channels, those of least magnitude, with everything coupled to them (layers
that are added to it, inputs of layers that read it). Int8 rounds its weights, and its inputs between the smallest and
largest value of 128 images, with the rest of the network in float. Post-training quantization by default takes the mean
of each image's range (`ranges`), so a layer with outliers may look worse here. The results are the share of validation
images whose prediction changes, which needs no label, and the points of top-1 lost where there are labels.

Losses do not add up: a layer that loses nothing here may still lose much together with others. The table shows where to
look first (Li et al. 2017, arXiv 1608.08710, section 3.2).
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

from winnow.compression import network_size
from winnow.compression.channel_pruning import prunable_groups
from winnow.compression.fake_quantization import simulated_int8
from winnow.config.backbones import is_prunable
from winnow.data.dataset import TRAIN, VALIDATION, ImageSet, spread_indices
from winnow.deploy.batch_inference import make_network_input, predict_torch
from winnow.eta import format_duration
from winnow.models.attention import split_heads
from winnow.models.backbones import Architecture, load_model
from winnow.models.layers import weight_layers

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_IMAGES, CALIBRATION_IMAGES = 2000, 128
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class ChangeCost:
    """The cost of one change to the network."""

    changed: float
    """Share of validation images whose prediction changes."""
    points: float | None
    """Points of top-1 lost; None without labels."""


@dataclass(frozen=True)
class LayerSensitivity:
    """The sensitivity of one convolution or linear layer."""

    layer: str
    macs: float
    parameters: float
    """Both as shares of the whole network."""
    pruned: ChangeCost | None
    """None where none of its channels can be removed."""
    pruned_with: tuple[str, ...]
    """Layers that lose the same channels."""
    int8: ChangeCost


@dataclass(frozen=True)
class _Reference:
    """The unchanged network and its predictions."""

    model: nn.Module
    architecture: Architecture
    images: ImageSet
    indices: NDArray[np.int64]
    predictions_N: NDArray[np.int64]

    def loss(self, model: nn.Module) -> ChangeCost:
        """Return the cost of a changed network."""
        predictions_N = predict_torch(model, self.images.images_NHWC, self.indices).argmax(1)
        labels_N = self.images.labels_N[self.indices]
        scored_N = labels_N >= 0
        points = None
        if scored_N.any():
            before, after = (
                float((predicted == labels_N)[scored_N].mean()) for predicted in (self.predictions_N, predictions_N)
            )
            points = (before - after) * 100
        return ChangeCost(float((predictions_N != self.predictions_N).mean()), points)


def measure_sensitivities(folder: Path, images: ImageSet, share: float = 0.5) -> list[LayerSensitivity]:
    """Return the sensitivity of every layer of a candidate, in order. Raises ArtifactError without weights."""
    model, architecture = load_model(folder)
    split_heads(model)
    all_indices = images.indices(VALIDATION)
    indices = all_indices[spread_indices(len(all_indices), MAX_IMAGES)]
    predictions_N = predict_torch(model, images.images_NHWC, indices).argmax(1)
    reference = _Reference(model, architecture, images, indices, predictions_N)
    layers = weight_layers(model)
    pruned = dict(_prune_each(reference, share)) if is_prunable(architecture.backbone) else {}
    macs, total = network_size.macs_by_layer(model, architecture), network_size.count_parameters(model)
    results = []
    for path, layer in _logged(list(layers.items()), "int8", "layers"):
        loss, pruned_with = pruned.get(path, (None, ()))
        shares = macs[path] / sum(macs.values()), layer.weight.numel() / total
        results.append(LayerSensitivity(path, *shares, loss, pruned_with, _quantize_one(reference, layer)))
    return results


def _prune_each(reference: _Reference, share: float) -> Iterator[tuple[str, tuple[ChangeCost, tuple[str, ...]]]]:
    """Yield (layer, (cost of pruning its group, the other layers of the group)) for all prunable layers."""
    for group in _logged(prunable_groups(reference.model, reference.architecture), "pruning", "groups of layers"):
        pruned = copy.deepcopy(reference.model)
        group.remove_least(pruned, reference.architecture, share)
        loss = reference.loss(pruned)
        for path in group.layers:
            yield path, (loss, tuple(coupled for coupled in group.layers if coupled != path))


def _logged(work: Sequence[T], task: str, pieces: str) -> Iterator[T]:
    """Yield the pieces of work, and log the progress from time to time."""
    started = last_log = time.monotonic()
    for done, piece in enumerate(work, 1):
        yield piece
        if time.monotonic() - last_log > SECONDS_BETWEEN_LINES:
            last_log = time.monotonic()
            seconds_left = (last_log - started) / done * (len(work) - done)
            log.info("%s: %d of %d %s, %s left", task, done, len(work), pieces, format_duration(seconds_left))


def _quantize_one(reference: _Reference, layer: nn.Module) -> ChangeCost:
    """Return the cost of rounding one layer to int8."""
    train_indices = reference.images.indices(TRAIN)
    chosen = train_indices[spread_indices(len(train_indices), CALIBRATION_IMAGES)]
    x_BCHW = make_network_input(reference.images.images_NHWC, chosen, torch.device("cpu"))
    reference.model.eval()
    with simulated_int8(reference.model, only=[layer]), torch.no_grad():
        layer.train()  # so that this layer alone updates its input range
        reference.model(x_BCHW)
        return reference.loss(reference.model)


def table_rows(results: list[LayerSensitivity]) -> list[dict[str, Any]]:
    """Return the table for users: shares in percent, losses in percent and points."""
    return [
        {
            "layer": result.layer,
            "macs_percent": result.macs * 100,
            "parameters_percent": result.parameters * 100,
            "pruned_changed_percent": None if result.pruned is None else result.pruned.changed * 100,
            "pruned_points_lost": None if result.pruned is None else result.pruned.points,
            "pruned_together_with": " ".join(result.pruned_with),
            "int8_changed_percent": result.int8.changed * 100,
            "int8_points_lost": result.int8.points,
        }
        for result in results
    ]
