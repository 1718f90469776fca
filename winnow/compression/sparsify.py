"""Sparsity: set weights to zero and keep them zero; shapes do not change.

unstructured  the smallest weights and biases of the whole network (Han et al. 2015, arXiv 1506.02626)
N:M           of every M weights of an output along its inputs the N largest are kept (Mishra et al. 2021, arXiv
              2104.08378); layers whose number of inputs is no multiple of M stay dense

At once, or gradually during recovery: at step t of the first two thirds of its T steps the share of zeros is
s (1 - (1 - 1.5 t / T)^3), always the smallest remaining values (Zhu and Gupta 2017, arXiv 1710.01878).

CPU runtimes multiply zeros as fast as any other number, so the file keeps its size and latency; only the zipped file
shrinks. The method is in the tree to show that. N:M serves GPUs with sparse tensor cores, which no runtime here uses.
Normalisation layers keep their parameters.
"""

from __future__ import annotations

import torch
from torch import nn

from winnow.compression.method_inputs import MethodInputs
from winnow.compression.recovery import recover, recovery_steps
from winnow.config import Sparsify
from winnow.errors import ConfigError
from winnow.models.backbones import with_split_heads
from winnow.models.layers import weight_layers
from winnow.models.network import Network
from winnow.records.method_results import SparsifyResult
from winnow.training.loop import Hooks

Masks = dict[str, torch.Tensor]
"""Parameter name -> bool, True where the value is kept."""
MASK_UPDATES = 50
"""Mask updates of a gradual schedule."""


def sparsify(settings: Sparsify, inputs: MethodInputs) -> tuple[Network, SparsifyResult]:
    """Mask a copy of the parent and recover under the mask; return the network and what was done.

    Raises ConfigError where no layer can take the pattern.
    """
    parent = inputs.parent.load()
    model, architecture = with_split_heads(parent.model, parent.architecture)
    _check(model, settings)
    schedule = _MaskSchedule(settings, recovery_steps(settings.recovery, inputs))
    if settings.schedule == "once":
        schedule.masks = make_masks(model, settings, settings.sparsity)
        apply_masks(model, schedule.masks)
    hooks = Hooks(after_backward=schedule.read, after_step=schedule.apply)
    curves = recover(model, settings.recovery, inputs, hooks=hooks)
    final = make_masks(model, settings, settings.sparsity)
    apply_masks(model, final)
    remaining = sum(int(mask.sum()) for mask in final.values())
    dense = [path for path in weight_layers(model) if f"{path}.weight" not in final]
    masked_share = 1 - remaining / sum(mask.numel() for mask in final.values())
    result = SparsifyResult(curves=curves, masked_share=masked_share, dense_layers=dense)
    return Network(model, architecture), result


def _check(model: nn.Module, settings: Sparsify) -> None:
    """Raise ConfigError where no layer can take the pattern, before anything is trained."""
    if settings.group is None or make_masks(model, settings, settings.sparsity):
        return
    inputs = sorted({int(layer.weight.shape[1]) for layer in weight_layers(model).values()})
    raise ConfigError(
        f"candidates: method sparsify: pattern: {settings.pattern} fits no layer: the number of inputs must be a "
        f"multiple of {settings.group}; this network's layers have {', '.join(map(str, inputs))}"
    )


class _MaskSchedule:
    """The masks of a training: fixed ones, or ones that grow on the gradual schedule."""

    def __init__(self, settings: Sparsify, steps: int) -> None:
        self.settings = settings
        self.last_step = max(1, steps * 2 // 3)
        self.interval = max(1, self.last_step // MASK_UPDATES)
        self.masks: Masks | None = None

    def read(self, model: nn.Module, _step: int) -> None:
        """Mask the values that are zero before a step, so that a resumed training finds its masks again."""
        if self.masks is None:
            self.masks = _nonzero(model)

    def apply(self, model: nn.Module, step: int) -> None:
        """Apply the masks after a step, with more zeros where the schedule is due."""
        gradual = self.settings.schedule == "gradual"
        if gradual and (step == self.last_step or (step < self.last_step and step % self.interval == 0)):
            self.masks = make_masks(
                model, self.settings, scheduled_sparsity(self.settings.sparsity, step / self.last_step)
            )
        assert self.masks is not None
        apply_masks(model, self.masks)


def fixed_zero_hooks() -> Hooks:
    """Return hooks that keep every zero weight and bias at zero while the network trains."""
    masks: Masks = {}

    def read(model: nn.Module, _step: int) -> None:
        if not masks:
            masks.update(_nonzero(model))

    def apply(model: nn.Module, _step: int) -> None:
        apply_masks(model, masks)

    return Hooks(after_backward=read, after_step=apply)


def _nonzero(model: nn.Module) -> Masks:
    return {name: value.detach() != 0 for name, value in _maskable(model).items()}


def scheduled_sparsity(final: float, progress: float) -> float:
    """Return the share of zeros at `progress` (0 to 1) of the schedule."""
    return final * (1 - (1 - min(1.0, progress)) ** 3)


def make_masks(model: nn.Module, settings: Sparsify, sparsity: float) -> Masks:
    """Return the masks for the configured pattern."""
    if settings.group is None:
        return magnitude_masks(model, sparsity)
    return group_masks(model, settings.group, sparsity)


def magnitude_masks(model: nn.Module, sparsity: float) -> Masks:
    """Return masks of weights and biases with `sparsity` as the share of zeros over all of them."""
    values = _maskable(model)
    magnitudes = torch.cat([value.detach().abs().flatten() for value in values.values()])
    removed = round(sparsity * magnitudes.numel())
    masked = torch.ones(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    masked[magnitudes.argsort(stable=True)[:removed]] = False
    pieces = torch.split(masked, [value.numel() for value in values.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(values.items(), pieces, strict=True)}


def group_masks(model: nn.Module, group: int, sparsity: float) -> Masks:
    """Return masks of weights: round(sparsity * group) zeros in every `group` of them along the inputs."""
    zeros, masks = round(sparsity * group), {}
    for path, layer in weight_layers(model).items():
        weight = layer.weight.detach()
        if weight.shape[1] % group:
            continue
        rows = weight.movedim(1, -1)  # inputs last: (out, height, width, in)
        grouped = rows.reshape(-1, group).abs()
        mask = torch.ones_like(grouped, dtype=torch.bool)
        mask.scatter_(1, grouped.argsort(dim=1, stable=True)[:, :zeros], False)
        masks[f"{path}.weight"] = mask.view(rows.shape).movedim(-1, 1).contiguous()
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set masked values to zero, in place."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        parameter.mul_(mask.to(parameter.device))


def _maskable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameter name -> weight or bias of convolutions and linear layers."""
    return {
        f"{path}.{name}": parameter
        for path, layer in weight_layers(model).items()
        for name, parameter in layer.named_parameters(recurse=False)
    }
