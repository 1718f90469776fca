"""Unstructured pruning: the smallest weights and biases become zero and stay so.

Han et al. 2015 (arXiv 1506.02626), ranked by magnitude over the whole network. Runtimes multiply zeros as fast as any
other number, so the file is as large and as fast as before; only what is zipped gets smaller. It is in the tree to show
that. Normalisation layers keep their parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.compression.inputs import Inputs
from winnow.compression.recovery import recover
from winnow.config import Sparsify
from winnow.export import export_onnx
from winnow.model_file import MODEL
from winnow.models.backbones import load_model, save_model

Masks = dict[str, torch.Tensor]


def sparsify(settings: Sparsify, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Mask the parent, recover under the mask, and leave weights and model.onnx in `folder` -> details."""
    model, architecture = load_model(inputs.parent)
    masks = magnitude_masks(model, settings.sparsity)
    apply_masks(model, masks)

    def hold(trained: nn.Module) -> None:
        apply_masks(trained, masks)

    curves = recover(model, settings.recovery, inputs, after_step=hold)
    save_model(folder, model, architecture)
    export_onnx(model, architecture, folder / MODEL)
    kept = sum(int(mask.sum()) for mask in masks.values())
    return {"curves": curves, "masked_share": 1 - kept / sum(mask.numel() for mask in masks.values())}


def magnitude_masks(model: nn.Module, sparsity: float) -> Masks:
    """Parameter name -> bool mask, True where the value stays; `sparsity` is the share of zeros over all of them."""
    values = {
        f"{path}.{name}": parameter.detach()
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for name, parameter in module.named_parameters(recurse=False)
    }
    magnitudes = torch.cat([value.abs().flatten() for value in values.values()])
    removed = round(sparsity * magnitudes.numel())
    masked = torch.ones(magnitudes.numel(), dtype=torch.bool)
    masked[magnitudes.argsort(stable=True)[:removed]] = False
    pieces = torch.split(masked, [value.numel() for value in values.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(values.items(), pieces, strict=True)}


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Zero what the masks take away, in place."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        parameter.mul_(mask.to(parameter.device))
