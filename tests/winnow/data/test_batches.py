from __future__ import annotations

import numpy as np
import pytest
import torch

from winnow.data.batches import Batches
from winnow.random_streams import stream_seed


def batches(count: int = 23, size: int = 8, seed: int = 0, indices: np.ndarray | None = None) -> Batches:
    """Images whose every pixel is their own number, and whose label is that number plus 100."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 5, 3))
    chosen = np.arange(count) if indices is None else indices
    return Batches(images, np.arange(count) + 100, chosen, size, seed)


def numbers(found: Batches, step: int) -> list[int]:
    images_BCHW, labels_B = found.at(step)
    assert (images_BCHW == images_BCHW[:, :1, :1, :1]).all()
    assert (images_BCHW[:, 0, 0, 0].long() + 100 == labels_B).all()  # a label stays with its image
    return images_BCHW[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("size", [1, 8, 23, 50])
def test_every_epoch_is_a_permutation(size: int) -> None:
    found = batches(size=size)
    seen = [number for step in range(5 * 23) for number in numbers(found, step)]
    assert len(seen) == 5 * 23 * size  # every batch is full
    epochs = [seen[at : at + 23] for at in range(0, len(seen), 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_batch_is_the_permutation_of_numpy() -> None:
    indices = np.array([3, 5, 7, 11, 13, 17, 19])
    seeds = [stream_seed(9, "order", epoch) for epoch in range(4)]
    laid = np.concatenate([np.random.default_rng(seed).permutation(indices) for seed in seeds])
    found = batches(size=4, seed=9, indices=indices)
    assert [numbers(found, step) for step in range(7)] == laid.reshape(7, 4).tolist()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forwards, backwards = batches(), batches()
    one = [numbers(forwards, step) for step in range(40)]
    two = [numbers(backwards, step) for step in reversed(range(40))]
    assert one == two[::-1]
    assert one != [numbers(batches(seed=1), step) for step in range(40)]


@pytest.mark.parametrize(("count", "size", "steps"), [(23, 8, 2), (24, 8, 3), (5, 8, 1), (8, 8, 1)])
def test_steps_per_epoch(count: int, size: int, steps: int) -> None:
    assert batches(count, size).steps_per_epoch == steps


def test_shape_type_and_layout() -> None:
    images_BCHW, labels_B = batches().at(0)
    assert (images_BCHW.shape, images_BCHW.dtype, labels_B.dtype) == ((8, 3, 4, 5), torch.uint8, torch.int64)
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images to train on"):
        batches(indices=np.array([], np.int64))
