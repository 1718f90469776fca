"""Methods that learn without labels: one paper, one file. The config's type selects the function.

A method puts its own head on the backbone and returns the loss that trains both, on views whose side it is told; the
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
