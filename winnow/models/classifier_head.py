"""Find, measure and replace the last linear layer of a classifier.

Pretraining puts a rotation head or a projector there, fine-tuning a new classifier; kNN removes it.
"""

from __future__ import annotations

import torch
from torch import nn

from winnow.errors import ConfigError
from winnow.random_streams import stream_seed


class Projector(nn.Sequential):
    """A head of several layers."""


def head_path(model: nn.Module) -> str:
    """Return the dotted name of the projector, or else of the last nn.Linear: `fc`, `classifier.3`, ..."""
    for kind in (Projector, nn.Linear):
        names: list[str] = [name for name, module in model.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1]
    raise ConfigError("a network without a linear head cannot be used; choose another one")


def feature_dim(model: nn.Module) -> int:
    """Return the input width of the head."""
    head = model.get_submodule(head_path(model))
    assert isinstance(head, nn.Linear)
    return head.in_features


def remove_head(model: nn.Module) -> nn.Module:
    """Remove the head, in place, and return the model: images (B, 3, S, S) -> the input of the head (B, D)."""
    return set_head(model, nn.Identity())


def set_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """Replace the head by `head`, in place, and return the model."""
    path = head_path(model)
    parent = model.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], head)
    return model


def new_classifier(model: nn.Module, num_classes: int, seed: int) -> nn.Module:
    """Replace the head by a linear classifier and return the model.

    Its weights are drawn from `seed` alone, so that both arms of an experiment start with the same head.
    """
    width = feature_dim(model)
    generator = torch.Generator().manual_seed(stream_seed(seed, "head"))
    head = nn.Linear(width, num_classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
        head.bias.zero_()
    return set_head(model, head)


def backbone_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights without the head, on the CPU."""
    state = backbone_state(model, head_path(model))
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def backbone_state(model: nn.Module, path: str) -> dict[str, torch.Tensor]:
    """Return the weights without the head at `path`."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(path + ".")}
