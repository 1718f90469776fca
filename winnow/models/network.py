"""Networks in memory: one that PyTorch can run and train, and one that exists as an ONNX file alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from winnow.models.backbones import Architecture


@dataclass(frozen=True)
class Network:
    """A PyTorch network: normalised images float32 (B, 3, S, S) -> logits (B, C)."""

    model: nn.Module
    """The PyTorch module."""
    architecture: Architecture
    """The description from which `model` can be rebuilt."""

    def copy(self) -> Network:
        """Return a copy on the CPU, in eval mode; changes to it do not affect this network."""
        return Network(copy.deepcopy(self.model).cpu().eval(), self.architecture)


@dataclass(frozen=True)
class OnnxNetwork:
    """A network as the content of an ONNX file: pixels uint8 (N, S, S, 3) -> logits float32 (N, C)."""

    content: bytes
    """Bytes of the ONNX file."""
    architecture: Architecture
    """The architecture of the network that it was made from."""
