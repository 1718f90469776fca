"""Self-supervised pretraining methods, one file per paper. `METHODS` maps the type of a config to its function.

A method puts its own head on the backbone and returns the loss that trains both on views of a given size. The training
loop is winnow.training.loop.fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from winnow.config import RotNet, SimCLR
from winnow.pretraining.rotnet import rotnet
from winnow.pretraining.simclr import simclr
from winnow.training.loop import Loss

METHODS: dict[type, Callable[[Any, nn.Module, int], Loss]] = {RotNet: rotnet, SimCLR: simclr}
"""Config type -> function of (settings, backbone, side of the views in pixels)."""
