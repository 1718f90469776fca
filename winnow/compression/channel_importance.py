"""How much a channel matters: the criteria by which `prune` ranks, named as in params.yaml.

All score a channel together with what would go with it (its group: the same channel of what is added to it, the inputs
of what reads it, its normalisation) and relative to the mean of its layer, so that layers compare. Two leave parts of
the group out: fpgm looks at filters alone, taylor at all but batch normalisation, which torch-pruning passes over.

magnitude   L2 norm of the weights (Li et al. 2017, arXiv 1608.08710; over groups Fang et al. 2023, arXiv 2301.12900)
taylor      |weight x gradient|: the change of the loss to first order (Molchanov et al. 2019, arXiv 1906.10771)
hessian     weight^2 x mean squared gradient of single images, the diagonal of the Fisher matrix in place of the Hessian
            (LeCun et al. 1989, Optimal Brain Damage)
bn-scale    the scale of the batch normalisation behind it (Liu et al. 2017, arXiv 1708.06519); other channels stay
lamp        magnitude over the sum of all that are larger in its layer (Lee et al. 2021, arXiv 2010.07611)
fpgm        sum of the distances to the other filters of its layer: those nearest to their geometric median, which the
            others can stand in for, go (He et al. 2019, arXiv 1811.00250, equation 4)
random      drawn from the seed: what ranking is worth

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

from winnow.compression.method_inputs import Inputs
from winnow.config.candidates import Importance
from winnow.deploy.batch_inference import network_input
from winnow.errors import ConfigError, MissingExtra
from winnow.random_streams import stream_seed
from winnow.timing_lock import compute_lock
from winnow.training.loop import device

SAMPLES = 256
BATCH = 64


@dataclass(frozen=True)
class Criterion:
    """Scores a group of torch-pruning -> (channels,). Gradients, where it needs them, lie on the parameters."""

    name: Importance
    seed: int

    def scorer(self) -> Callable[[Any], torch.Tensor | None]:
        """A fresh one: some keep state."""
        importance = pruning_library().importance
        if self.name == "random":
            return _random(self.seed)
        kinds: dict[str, Callable[[], Any]] = {
            "magnitude": lambda: importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean"),
            "taylor": lambda: importance.GroupTaylorImportance(group_reduction="mean", normalizer="mean"),
            "hessian": lambda: importance.GroupHessianImportance(group_reduction="mean", normalizer="mean"),
            "bn-scale": lambda: importance.BNScaleImportance(group_reduction="mean", normalizer="mean"),
            "lamp": lambda: importance.LAMPImportance(p=2, group_reduction="mean"),
            "fpgm": lambda: filter_distances,
        }
        made: Callable[[Any], torch.Tensor | None] = kinds[self.name]()
        return made


@compute_lock()
def prepare(model: nn.Module, name: Importance, inputs: Inputs, seed: int) -> Criterion:
    """The criterion, with the gradients that it needs left on the parameters of `model`, which stays in eval mode.

    Raises ConfigError where the network or the labels do not carry it.
    """
    if name == "bn-scale" and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ConfigError(
            "candidates: importance: bn-scale ranks by batch normalisation, which this network does not have; "
            "use magnitude"
        )
    if name in ("taylor", "hessian"):
        _gradients(model, inputs, seed, squared=name == "hessian")
    return Criterion(name, seed)


def _gradients(model: nn.Module, inputs: Inputs, seed: int, squared: bool) -> None:
    """Leave the mean gradient, or the mean of the squared gradients of single images, on the parameters."""
    labelled = inputs.budget[inputs.labels_N[inputs.budget] >= 0]
    if len(labelled) == 0:
        raise ConfigError("candidates: importance: taylor and hessian need labelled images; use magnitude")
    count = min(SAMPLES, len(labelled))
    chosen = np.sort(np.random.default_rng(stream_seed(seed, "importance")).choice(labelled, count, replace=False))
    where = device()
    model.to(where).eval().requires_grad_(True)
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for at in range(0, count, 1 if squared else BATCH):
        part = chosen[at : at + (1 if squared else BATCH)]
        logits_BC = model(network_input(inputs.images.images_NHWC, part, where))
        labels_B = torch.from_numpy(inputs.labels_N[part]).to(where)
        grads = torch.autograd.grad(
            F.cross_entropy(logits_BC, labels_B, reduction="sum"), list(model.parameters()), allow_unused=True
        )
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad.square() if squared else grad
    model.cpu()
    for parameter, total in zip(model.parameters(), sums, strict=True):
        parameter.grad = (total / count).cpu()


@torch.no_grad()
def filter_distances(group: Any) -> torch.Tensor | None:
    """Return each filter's sum of Euclidean distances to the others, mean over the group's layers, (channels,).

    Relative to the mean channel; None where no layer of the group has filters. torch-pruning's own FPGMImportance
    squares weights before it takes distances, so that a filter and its negative count as the same.
    """
    library = pruning_library()
    of_outputs = (library.prune_conv_out_channels, library.prune_linear_out_channels)
    parts = [part for part in group if part.dep.pruning_fn in of_outputs]
    if not parts:
        return None
    sums_C = torch.zeros(len(group[0].root_idxs))
    for part in parts:
        layer = part.dep.layer
        weight = layer.weight.transpose(0, 1) if getattr(layer, "transposed", False) else layer.weight
        filters_CD = weight[part.idxs].flatten(1).double().cpu()  # by products of matrices float32 is too coarse
        distances_C = torch.cdist(filters_CD, filters_CD).sum(1).float()
        sums_C.index_add_(0, torch.tensor(part.root_idxs), distances_C)
    return sums_C / sums_C.mean()


def _random(seed: int) -> Callable[[Any], torch.Tensor]:
    generator = torch.Generator().manual_seed(stream_seed(seed, "random importance"))

    def score(group: Any) -> torch.Tensor:
        _, indexes = group[0]
        return torch.rand(len(indexes), generator=generator)

    return score


def pruning_library() -> Any:
    """torch_pruning, without the warnings of its import. Raises MissingExtra."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtra("torch-pruning", "compress") from error
    return torch_pruning
