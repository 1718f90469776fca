"""Load tensors that were stored without the modules' versions, as safetensors stores them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], strict: bool = True) -> None:
    """Load the state into the model, in place, with the modules' versions, which torchvision's MNASNet needs.

    Raises RuntimeError as nn.Module.load_state_dict does.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=strict)
