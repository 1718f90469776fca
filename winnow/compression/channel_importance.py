"""Importance criteria by which `prune` ranks channels, named as in params.yaml.

All score a channel together with its group (the same channel of the layers that are added to it, the inputs of the
layers that read it, its normalisation) and relative to the mean of its layer, so that layers compare. Two leave out
parts of the group: fpgm uses filters alone; taylor uses everything but batch normalisation, which torch-pruning skips.

magnitude   L2 norm of the weights (Li et al. 2017, arXiv 1608.08710; over groups Fang et al. 2023, arXiv 2301.12900)
taylor      |weight x gradient|: the change of the loss to first order (Molchanov et al. 2019, arXiv 1906.10771)
hessian     weight^2 x mean squared gradient of single images, the diagonal of the Fisher matrix in place of the Hessian
            (LeCun et al. 1989, Optimal Brain Damage)
bn-scale    the scale of the following batch normalisation (Liu et al. 2017, arXiv 1708.06519); channels without one
            are kept
lamp        magnitude over the sum of all larger ones in its layer (Lee et al. 2021, arXiv 2010.07611)
fpgm        sum of the distances to the other filters of its layer: the filters nearest to the geometric median are
            removed, since the others can replace them (He et al. 2019, arXiv 1811.00250, equation 4)
random      drawn from the seed: the baseline that shows what ranking is worth

Gradients are those of the cross-entropy on up to 256 labelled training images of the budget, drawn from the seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from winnow.compression.method_inputs import MethodInputs
from winnow.config.candidates import Importance
from winnow.deploy.batch_inference import make_network_input
from winnow.errors import ConfigError, MissingExtra
from winnow.random_streams import stream_seed
from winnow.timing_lock import compute_lock
from winnow.training.device import default_device

MAX_GRADIENT_IMAGES = 256
GRADIENT_BATCH = 64


@dataclass(frozen=True)
class Criterion:
    """A named criterion for groups of torch-pruning; taylor and hessian read the gradients on the parameters."""

    name: Importance
    seed: int

    def scorer(self) -> Callable[[Any], torch.Tensor | None]:
        """Return a new function group -> scores (channels,). Each call makes one, since some keep state."""
        importance = import_torch_pruning().importance
        if self.name == "random":
            return _random(self.seed)
        factories: dict[str, Callable[[], Any]] = {
            "magnitude": lambda: importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean"),
            "taylor": lambda: importance.GroupTaylorImportance(group_reduction="mean", normalizer="mean"),
            "hessian": lambda: importance.GroupHessianImportance(group_reduction="mean", normalizer="mean"),
            "bn-scale": lambda: importance.BNScaleImportance(group_reduction="mean", normalizer="mean"),
            "lamp": lambda: importance.LAMPImportance(p=2, group_reduction="mean"),
            "fpgm": lambda: filter_distances,
        }
        score: Callable[[Any], torch.Tensor | None] = factories[self.name]()
        return score


@compute_lock()
def prepare_criterion(model: nn.Module, name: Importance, inputs: MethodInputs, seed: int) -> Criterion:
    """Return the criterion, and leave the gradients that it needs on the parameters of `model`, in eval mode.

    Raises ConfigError where the network has no batch normalisation for bn-scale, or no image has a label.
    """
    if name == "bn-scale" and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ConfigError(
            "candidates: importance: bn-scale ranks channels by batch normalisation, which this network does not have; "
            "use magnitude"
        )
    if name in ("taylor", "hessian"):
        _gradients(model, inputs, seed, squared=name == "hessian")
    return Criterion(name, seed)


def _gradients(model: nn.Module, inputs: MethodInputs, seed: int, squared: bool) -> None:
    """Set each parameter's grad to the mean gradient, or to the mean of the squared gradients of single images."""
    labelled = inputs.budget[inputs.labels_N[inputs.budget] >= 0]
    if len(labelled) == 0:
        raise ConfigError("candidates: importance: taylor and hessian need labelled images; use magnitude")
    count = min(MAX_GRADIENT_IMAGES, len(labelled))
    chosen = np.sort(np.random.default_rng(stream_seed(seed, "importance")).choice(labelled, count, replace=False))
    target_device = default_device()
    model.to(target_device).eval().requires_grad_(True)
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for start in range(0, count, 1 if squared else GRADIENT_BATCH):
        batch = chosen[start : start + (1 if squared else GRADIENT_BATCH)]
        logits_BC = model(make_network_input(inputs.images.images_NHWC, batch, target_device))
        labels_B = torch.from_numpy(inputs.labels_N[batch]).to(target_device)
        grads = torch.autograd.grad(
            F.cross_entropy(logits_BC, labels_B, reduction="sum"), list(model.parameters()), allow_unused=True
        )
        for gradient_sum, grad in zip(sums, grads, strict=True):
            if grad is not None:
                gradient_sum += grad.square() if squared else grad
    model.cpu()
    for parameter, gradient_sum in zip(model.parameters(), sums, strict=True):
        parameter.grad = (gradient_sum / count).cpu()


@torch.no_grad()
def filter_distances(group: Any) -> torch.Tensor | None:
    """Return each filter's sum of Euclidean distances to the others, mean over the group's layers, (channels,).

    Relative to the mean channel; None where no layer of the group has filters. torch-pruning's own FPGMImportance
    squares weights before it takes distances, so a filter and its negative count as the same.
    """
    library = import_torch_pruning()
    output_pruners = (library.prune_conv_out_channels, library.prune_linear_out_channels)
    parts = [part for part in group if part.dep.pruning_fn in output_pruners]
    if not parts:
        return None
    sums_C = torch.zeros(len(group[0].root_idxs))
    for part in parts:
        layer = part.dep.layer
        weight = layer.weight.transpose(0, 1) if getattr(layer, "transposed", False) else layer.weight
        # In float32 the matrix product inside cdist is too coarse.
        filters_CD = weight[part.idxs].flatten(1).double().cpu()
        distances_C = torch.cdist(filters_CD, filters_CD).sum(1).float()
        sums_C.index_add_(0, torch.tensor(part.root_idxs), distances_C)
    return sums_C / sums_C.mean()


def _random(seed: int) -> Callable[[Any], torch.Tensor]:
    """Return a function that scores a group with random numbers drawn from the seed."""
    generator = torch.Generator().manual_seed(stream_seed(seed, "random importance"))

    def score(group: Any) -> torch.Tensor:
        _, channels = group[0]
        return torch.rand(len(channels), generator=generator)

    return score


def import_torch_pruning() -> Any:
    """Import and return torch_pruning without the warnings of its import. Raises MissingExtra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtra("torch-pruning", "compress") from error
    return torch_pruning
