"""Weight clustering: each layer keeps a few values, shared by all its weights; a zipped file holds only their numbers.

Values are found by k-means from evenly spaced starts and learn on while the network recovers: weights of one value move
together, by the mean of their gradients (Han, Mao, Dally 2016, Deep Compression, arXiv 1510.00149). Runtimes multiply
the values as any others: the file in memory and the time of a call stay, what is stored and sent shrinks. Normalisation
layers and biases keep their own values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from winnow.compression.method_inputs import Inputs
from winnow.compression.recovery import recover
from winnow.config import Cluster
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import MissingExtra
from winnow.models.backbones import load_model, save_model, with_heads_apart
from winnow.models.layers import layers_of
from winnow.random_streams import stream_seed
from winnow.timing_lock import compute_lock
from winnow.training.loop import Hooks

Tie = tuple[torch.Tensor, torch.Tensor]

SAMPLE = 50_000
"""Weights of a layer that k-means looks at."""


def cluster(settings: Cluster, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Tie the parent's weights, recover tied, and leave weights and model.onnx in `folder` -> details."""
    model, architecture = with_heads_apart(*load_model(inputs.parent))
    for weight in _weights(model).values():
        tie(weight, settings.values, settings.recovery.seed)
    curves = recover(model, settings.recovery, inputs, hooks=fixed_ties())
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    return {"curves": curves, "values": {name: len(torch.unique(weight)) for name, weight in _weights(model).items()}}


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{path}.weight": layer.weight.detach() for path, layer in layers_of(model).items()}


@compute_lock()
def tie(weight: torch.Tensor, values: int, seed: int) -> None:
    """Give every entry the nearest of `values` values, in place; a tensor with no more than these is left alone."""
    try:
        from sklearn.cluster import KMeans
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    flat = weight.flatten().numpy()
    if len(np.unique(flat)) <= values:
        return
    drawn = np.random.default_rng(stream_seed(seed, "clusters")).choice(flat, min(SAMPLE, len(flat)), replace=False)
    starts = np.linspace(drawn.min(), drawn.max(), values)[:, None]
    found = np.sort(KMeans(values, init=starts, n_init=1).fit(drawn[:, None]).cluster_centers_[:, 0])
    nearest = np.searchsorted((found[1:] + found[:-1]) / 2, flat)
    weight.copy_(torch.from_numpy(found[nearest].astype(flat.dtype)).view_as(weight))


def fixed_ties() -> Hooks:
    """Return hooks under which a network trains on and weights of one layer that share a value go on sharing one."""
    ties = _Ties()
    return Hooks(ties.share_gradients, ties.hold)


class _Ties:
    """Which weights share a value, read off the weights themselves: so a training that goes on finds them again."""

    def __init__(self) -> None:
        self.of: dict[str, Tie] = {}
        """Weight -> (number of each entry's value, how many entries have it)."""

    def share_gradients(self, model: nn.Module, _step: int) -> None:
        """Weights of one value get the mean of their gradients."""
        if not self.of:
            for name, weight in _weights(model).items():
                _, numbers, counts = torch.unique(weight, return_inverse=True, return_counts=True)
                self.of[name] = (numbers.flatten(), counts)
        for name, (numbers, counts) in self.of.items():
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                gradient.copy_(_means(gradient, numbers, counts))

    def hold(self, model: nn.Module, _step: int) -> None:
        """What rounding drew apart is one value again."""
        for name, (numbers, counts) in self.of.items():
            weight = model.get_parameter(name).detach()
            weight.copy_(_means(weight, numbers, counts))


def _means(tensor: torch.Tensor, numbers: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean over each value's weights, at each weight."""
    sums = torch.zeros(len(counts), dtype=torch.float64, device=tensor.device)
    sums.index_add_(0, numbers, tensor.flatten().double())
    return (sums / counts)[numbers].to(tensor.dtype).view(tensor.shape)
