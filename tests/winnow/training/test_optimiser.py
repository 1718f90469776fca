from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from winnow.config import Optimiser
from winnow.data.batches import Batches
from winnow.models.backbones import Architecture, build_model
from winnow.models.input_adapter import InputAdapter, InputSpec
from winnow.training.feature_projector import FeatureProjector
from winnow.training.loop import TrainingPlan, fit, run_to_end
from winnow.training.optimiser import layer_blocks


def test_blocks_are_numbered_from_the_input_to_the_head() -> None:
    blocks = layer_blocks(build_model(Architecture(backbone="resnet18", num_classes=2, image_size=32)))
    assert blocks["conv1.weight"] == 0
    assert blocks["layer1.0.conv1.weight"] == blocks["layer1.0.bn2.bias"] < blocks["layer1.1.conv1.weight"]
    assert blocks["fc.weight"] == blocks["fc.bias"] == max(blocks.values())


@pytest.mark.parametrize(
    ("backbone", "count", "block"),
    [
        ("vit_b_16", 16, "encoder.layers.encoder_layer_0."),
        ("densenet121", 68, "features.denseblock1.denselayer1."),
        ("regnet_y_400mf", 19, "trunk_output.block2.block2-1."),
        ("googlenet", 13, "inception3a."),
        ("timm:regnetx_002", 6, "s2."),
        ("resnet18", 11, "layer2.0."),
    ],
)
def test_all_parameters_of_a_block_have_one_number(backbone: str, count: int, block: str) -> None:
    model = build_model(Architecture(backbone=backbone, num_classes=2, image_size=224))
    blocks = layer_blocks(model)
    assert len(set(blocks.values())) == max(blocks.values()) + 1 == count
    own = {number for name, number in blocks.items() if name.startswith(block)}
    others = {number for name, number in blocks.items() if not name.startswith(block)}
    assert len(own) == 1
    assert not own & others


def test_a_network_inside_another_module_has_the_same_blocks() -> None:
    spec = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = build_model(Architecture(backbone="resnet18", num_classes=2, image_size=32))
    blocks = layer_blocks(model)
    inside = layer_blocks(FeatureProjector(InputAdapter(model, spec), 4, 0))
    assert {name: inside[f"student.network.{name}"] for name in blocks} == blocks
    assert inside["translate.weight"] == max(inside.values())


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
