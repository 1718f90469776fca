"""Weights become zero and stay so, the network keeps its shape.

unstructured  the smallest weights and biases of the whole network (Han et al. 2015, arXiv 1506.02626)
N:M           of every M weights of an output along its inputs the N largest stay (Mishra et al. 2021, arXiv
              2104.08378); layers whose inputs are no multiple of M stay dense

At once, or gradually while the network recovers: at step t of the first two thirds of its T steps the share of zeros is
s (1 - (1 - 1.5 t / T)^3) (Zhu and Gupta 2017, arXiv 1710.01878), the smallest of what is left going each time.

Runtimes multiply zeros as fast as any other number, so the file is as large and as fast as before; only what is zipped
gets smaller. It is in the tree to show that. N:M is what GPUs with sparse tensor cores can use; nothing here does.
Normalisation layers keep their parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.compression.method_inputs import Inputs
from winnow.compression.recovery import recover, recovery_steps
from winnow.config import Sparsify
from winnow.deploy.onnx_export import export_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.errors import ConfigError
from winnow.models.backbones import load_model, save_model, with_heads_apart
from winnow.models.layers import layers_of
from winnow.training.loop import Hooks

Masks = dict[str, torch.Tensor]
"""Parameter name -> bool, True where the value stays."""
CUTS = 50
"""Times that a gradual schedule masks anew."""


def sparsify(settings: Sparsify, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Mask the parent, recover under the mask, and leave weights and model.onnx in `folder` -> details."""
    model, architecture = with_heads_apart(*load_model(inputs.parent))
    _check(model, settings)
    holder = _Holder(settings, recovery_steps(settings.recovery, inputs))
    if settings.schedule == "once":
        holder.masks = masks_of(model, settings, settings.sparsity)
        apply_masks(model, holder.masks)
    hooks = Hooks(after_backward=holder.look, after_step=holder.hold)
    curves = recover(model, settings.recovery, inputs, hooks=hooks)
    final = masks_of(model, settings, settings.sparsity)
    apply_masks(model, final)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    kept = sum(int(mask.sum()) for mask in final.values())
    dense = [path for path in layers_of(model) if f"{path}.weight" not in final]
    masked_share = 1 - kept / sum(mask.numel() for mask in final.values())
    return {"curves": curves, "masked_share": masked_share, "dense_layers": dense}


def _check(model: nn.Module, settings: Sparsify) -> None:
    """Raise ConfigError where no layer can take the pattern, before anything is trained."""
    if settings.group is None or masks_of(model, settings, settings.sparsity):
        return
    inputs = sorted({int(layer.weight.shape[1]) for layer in layers_of(model).values()})
    raise ConfigError(
        f"candidates: method sparsify: pattern: {settings.pattern} fits no layer, as the inputs of each must be a "
        f"multiple of {settings.group}; this network's layers have {', '.join(map(str, inputs))}"
    )


class _Holder:
    """The masks of a training: those it began with, or ever more on a schedule."""

    def __init__(self, settings: Sparsify, steps: int) -> None:
        self.settings = settings
        self.until = max(1, steps * 2 // 3)
        self.every = max(1, self.until // CUTS)
        self.masks: Masks | None = None

    def look(self, model: nn.Module, _step: int) -> None:
        """Before a step: what is zero is masked. So a training that goes on from a checkpoint finds its masks."""
        if self.masks is None:
            self.masks = _nonzero(model)

    def hold(self, model: nn.Module, step: int) -> None:
        """After a step."""
        gradual = self.settings.schedule == "gradual"
        if gradual and (step == self.until or (step < self.until and step % self.every == 0)):
            self.masks = masks_of(model, self.settings, gradual_share(self.settings.sparsity, step / self.until))
        assert self.masks is not None
        apply_masks(model, self.masks)


def fixed_zeros() -> Hooks:
    """Return hooks under which a network trains on and every weight and bias that is zero stays zero."""
    masks: Masks = {}

    def read(model: nn.Module, _step: int) -> None:
        if not masks:
            masks.update(_nonzero(model))

    def hold(model: nn.Module, _step: int) -> None:
        apply_masks(model, masks)

    return Hooks(after_backward=read, after_step=hold)


def _nonzero(model: nn.Module) -> Masks:
    return {name: value.detach() != 0 for name, value in _maskable(model).items()}


def gradual_share(final: float, progress: float) -> float:
    """Share of zeros once `progress` (0 to 1) of the schedule is over."""
    return final * (1 - (1 - min(1.0, progress)) ** 3)


def masks_of(model: nn.Module, settings: Sparsify, sparsity: float) -> Masks:
    """By the pattern that is set."""
    if settings.group is None:
        return magnitude_masks(model, sparsity)
    return group_masks(model, settings.group, sparsity)


def magnitude_masks(model: nn.Module, sparsity: float) -> Masks:
    """Of all weights and biases, `sparsity` being the share of zeros over all of them."""
    values = _maskable(model)
    magnitudes = torch.cat([value.detach().abs().flatten() for value in values.values()])
    removed = round(sparsity * magnitudes.numel())
    masked = torch.ones(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    masked[magnitudes.argsort(stable=True)[:removed]] = False
    pieces = torch.split(masked, [value.numel() for value in values.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(values.items(), pieces, strict=True)}


def group_masks(model: nn.Module, group: int, sparsity: float) -> Masks:
    """Of weights alone: in every `group` of them along the inputs round(sparsity * group) are zero."""
    zeros, masks = round(sparsity * group), {}
    for path, layer in layers_of(model).items():
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
    """Zero what the masks take away, in place."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        parameter.mul_(mask.to(parameter.device))


def _maskable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases of convolutions and linear layers."""
    return {
        f"{path}.{name}": parameter
        for path, layer in layers_of(model).items()
        for name, parameter in layer.named_parameters(recurse=False)
    }
