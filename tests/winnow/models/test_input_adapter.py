from __future__ import annotations

import pytest
import torch
from torch import nn

from winnow.data.augmentation import MEAN, STD, normalise
from winnow.models.input_adapter import InputAdapter, InputSpec, input_size, without_adapter


@pytest.mark.parametrize(
    ("native", "image_size", "patch", "expected"),
    [
        (224, 32, None, 160),
        (224, 64, None, 224),
        (224, 96, None, 224),
        (224, 224, None, 224),
        (224, 320, None, 320),
        (518, 32, 14, 154),
        (224, 28, None, 128),
        (224, 8, None, 32),
        (224, 250, 16, 240),
        (224, 250, None, 250),
    ],
)
def test_images_are_enlarged_at_most_five_times(native: int, image_size: int, patch: int | None, expected: int) -> None:
    assert input_size(native, image_size, patch) == expected


def test_the_network_gets_pixels_normalised_as_it_expects() -> None:
    pixels_BCHW = torch.rand(2, 3, 8, 8)
    spec = InputSpec(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
    adapted_BCHW = InputAdapter(nn.Identity(), spec)(normalise(pixels_BCHW))
    mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    torch.testing.assert_close(adapted_BCHW, (pixels_BCHW - mean) / std, atol=1e-5, rtol=1e-5)


def test_images_are_resized_to_the_size_of_the_network() -> None:
    x_BCHW = torch.randn(2, 3, 8, 8)
    resized_BCHW = InputAdapter(nn.Identity(), InputSpec(size=24, mean=MEAN, std=STD))(x_BCHW)
    assert resized_BCHW.shape == (2, 3, 24, 24)
    torch.testing.assert_close(resized_BCHW[:, :, 1::3, 1::3], x_BCHW)  # centres of the enlarged pixels


def test_the_adapter_adds_nothing_to_the_weights() -> None:
    network = nn.Linear(3, 2)
    adapter = InputAdapter(network, InputSpec(size=8, mean=MEAN, std=STD))
    assert set(adapter.state_dict()) == {"network.weight", "network.bias"}
    assert without_adapter(adapter) is network
    assert without_adapter(network) is network
