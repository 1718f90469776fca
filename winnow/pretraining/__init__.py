"""Self-supervised pretraining methods, one file per paper. `METHODS` maps the type of a config to its function.

A method puts its own head on the backbone and returns the loss that trains both on views of a given size. The training
loop is winnow.training.loop.fit. In place of labels a batch holds the positions of its images in the data set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from winnow.config import DistillEmbeddings, RotNet, SimCLR
from winnow.pretraining.distill import distill
from winnow.pretraining.inputs import PretrainingInputs
from winnow.pretraining.rotnet import rotnet
from winnow.pretraining.simclr import simclr
from winnow.training.loop import Loss

METHODS: dict[type, Callable[[Any, nn.Module, PretrainingInputs], Loss]] = {
    RotNet: rotnet,
    SimCLR: simclr,
    DistillEmbeddings: distill,
}
"""Config type -> function of (settings, backbone, inputs)."""
