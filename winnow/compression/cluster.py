"""Weight clustering: the weights of each layer share a few values; a zipped file then holds only their indices.

Values are found by k-means from evenly spaced starts. During recovery, weights that share a value are updated together
with the mean of their gradients (Han, Mao, Dally 2016, Deep Compression, arXiv 1510.00149). Runtimes multiply these
values like any others: memory in use and latency stay the same, only the compressed file shrinks. Normalisation layers
and biases are not clustered.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover
from winnow.config import Cluster
from winnow.errors import MissingExtra
from winnow.models.backbones import with_split_heads
from winnow.models.layers import weight_layers
from winnow.models.network import Network
from winnow.random_streams import stream_seed
from winnow.records.method_results import ClusterResult
from winnow.timing_lock import compute_lock
from winnow.training.loop import Hooks

ValueGroups = tuple[torch.Tensor, torch.Tensor]

KMEANS_SAMPLE = 50_000
"""Weights of a layer that k-means is fitted on."""


def cluster(settings: Cluster, inputs: MethodInputs) -> tuple[Network, ClusterResult]:
    """Cluster the weights of a copy of the parent and recover; return the network and what was done."""
    parent = inputs.parent.load()
    model, architecture = with_split_heads(parent.model, parent.architecture)
    for weight in _weights(model).values():
        share_values(weight, settings.values, settings.recovery.seed)
    curves = recover(model, settings.recovery, inputs, hooks=shared_value_hooks())
    values = {name: len(torch.unique(weight)) for name, weight in _weights(model).items()}
    return Network(model, architecture), ClusterResult(curves=curves, values=values)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameter name -> detached weight of every convolution and linear layer."""
    return {f"{path}.weight": layer.weight.detach() for path, layer in weight_layers(model).items()}


@compute_lock()
def share_values(weight: torch.Tensor, values: int, seed: int) -> None:
    """Replace every entry by the nearest of `values` shared values, in place; no change with fewer distinct ones."""
    try:
        from sklearn.cluster import KMeans
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "report") from error
    flat = weight.flatten().numpy()
    if len(np.unique(flat)) <= values:
        return
    sampled = np.random.default_rng(stream_seed(seed, "clusters")).choice(
        flat, min(KMEANS_SAMPLE, len(flat)), replace=False
    )
    starts = np.linspace(sampled.min(), sampled.max(), values)[:, None]
    centres = np.sort(KMeans(values, init=starts, n_init=1).fit(sampled[:, None]).cluster_centers_[:, 0])
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat)
    weight.copy_(torch.from_numpy(centres[nearest].astype(flat.dtype)).view_as(weight))


def shared_value_hooks() -> Hooks:
    """Return hooks that keep weights of one layer equal while the network trains, where they were equal before."""
    shared = _SharedValues()
    return Hooks(shared.average_gradients, shared.average_weights)


class _SharedValues:
    """The weights that share a value, read from the weights themselves, so that a resumed training finds them again."""

    def __init__(self) -> None:
        self.by_name: dict[str, ValueGroups] = {}
        """Parameter name -> (value index of each entry, number of entries per value)."""

    def average_gradients(self, model: nn.Module, _step: int) -> None:
        """Give the weights that share a value the mean of their gradients."""
        if not self.by_name:
            for name, weight in _weights(model).items():
                _, indices, counts = torch.unique(weight, return_inverse=True, return_counts=True)
                self.by_name[name] = (indices.flatten(), counts)
        for name, (indices, counts) in self.by_name.items():
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                gradient.copy_(_means(gradient, indices, counts))

    def average_weights(self, model: nn.Module, _step: int) -> None:
        """Make the weights of one value equal again, which rounding may have changed."""
        for name, (indices, counts) in self.by_name.items():
            weight = model.get_parameter(name).detach()
            weight.copy_(_means(weight, indices, counts))


def _means(tensor: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return at each entry the mean over all entries that share its value."""
    sums = torch.zeros(len(counts), dtype=torch.float64, device=tensor.device)
    sums.index_add_(0, indices, tensor.flatten().double())
    return (sums / counts)[indices].to(tensor.dtype).view(tensor.shape)
