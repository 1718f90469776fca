from __future__ import annotations

import numpy as np
import torch
from torch import nn

from winnow.config import Optimiser
from winnow.data.batches import Batches
from winnow.models.backbones import Architecture, build_model
from winnow.training.loop import TrainingPlan, fit, run_to_end
from winnow.training.optimiser import layer_blocks


def test_blocks_are_numbered_from_the_input_to_the_head() -> None:
    blocks = layer_blocks(build_model(Architecture(backbone="resnet18", num_classes=2, image_size=32)))
    assert blocks["conv1.weight"] == 0
    assert blocks["layer1.0.conv1.weight"] == blocks["layer1.0.bn2.bias"] < blocks["layer1.1.conv1.weight"]
    assert blocks["fc.weight"] == blocks["fc.bias"] == max(blocks.values())


def test_layer_decay_slows_early_blocks_by_its_powers() -> None:
    """One step of SGD without momentum moves each weight by rate * decay^(blocks after it) * gradient."""
    images = np.full((4, 2, 2, 3), 200, np.uint8)
    batches = Batches(images, np.array([0, 1, 0, 1]), np.arange(4), 4, 0)
    moves = {}
    for decay in (1.0, 0.5):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Linear(3, 3), nn.Linear(3, 2))
        before = [layer.weight.detach().clone() for layer in (model[1], model[2], model[3])]
        settings = Optimiser(learning_rate=0.1, momentum=0.0, weight_decay=0.0, warmup=0.0, layer_decay=decay)
        run_to_end(
            fit(model, batches, lambda m, x, y: m(x.float() / 200).float().sum(), TrainingPlan(1, 1, settings, 0))
        )
        moves[decay] = [layer.weight.detach() - old for layer, old in zip(model[1:], before, strict=True)]
    for plain, decayed, scale in zip(moves[1.0], moves[0.5], (0.25, 0.5, 1.0), strict=True):
        torch.testing.assert_close(decayed, plain * scale)
