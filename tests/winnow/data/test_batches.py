from __future__ import annotations

import numpy as np
import pytest
import torch

from winnow.data.batches import Batches
from winnow.errors import DataError
from winnow.random_streams import stream_seed


def make_batches(count: int = 23, size: int = 8, seed: int = 0, indices: np.ndarray | None = None) -> Batches:
    """Return batches of images whose pixels are the image's number; the label is the number plus 100."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 5, 3))
    selected = np.arange(count) if indices is None else indices
    return Batches(images, np.arange(count) + 100, selected, size, seed)


def image_numbers(batches: Batches, step: int) -> list[int]:
    images_BCHW, labels_B = batches.at(step)
    assert (images_BCHW == images_BCHW[:, :1, :1, :1]).all()
    assert (images_BCHW[:, 0, 0, 0].long() + 100 == labels_B).all()  # a label stays with its image
    return images_BCHW[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("size", [1, 8, 23, 50])
def test_every_epoch_is_a_permutation(size: int) -> None:
    sampler = make_batches(size=size)
    drawn = [number for step in range(5 * 23) for number in image_numbers(sampler, step)]
    assert len(drawn) == 5 * 23 * size  # every batch is full
    epochs = [drawn[start : start + 23] for start in range(0, len(drawn), 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_batches_follow_the_permutation_of_numpy() -> None:
    indices = np.array([3, 5, 7, 11, 13, 17, 19])
    seeds = [stream_seed(9, "order", epoch) for epoch in range(4)]
    expected = np.concatenate([np.random.default_rng(seed).permutation(indices) for seed in seeds])
    sampler = make_batches(size=4, seed=9, indices=indices)
    assert [image_numbers(sampler, step) for step in range(7)] == expected.reshape(7, 4).tolist()


def test_a_batch_depends_on_seed_and_step_only() -> None:
    forwards, backwards = make_batches(), make_batches()
    forward = [image_numbers(forwards, step) for step in range(40)]
    backward = [image_numbers(backwards, step) for step in reversed(range(40))]
    assert forward == backward[::-1]
    assert forward != [image_numbers(make_batches(seed=1), step) for step in range(40)]


@pytest.mark.parametrize(("count", "size", "steps"), [(23, 8, 2), (24, 8, 3), (5, 8, 1), (8, 8, 1)])
def test_steps_per_epoch(count: int, size: int, steps: int) -> None:
    assert make_batches(count, size).steps_per_epoch == steps


def test_shape_type_and_layout() -> None:
    images_BCHW, labels_B = make_batches().at(0)
    assert (images_BCHW.shape, images_BCHW.dtype, labels_B.dtype) == ((8, 3, 4, 5), torch.uint8, torch.int64)
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="no image is in the training split"):
        make_batches(indices=np.array([], np.int64))
