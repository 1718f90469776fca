from __future__ import annotations

import ast
import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.closure import ROOT
from winnow.config import Augmentation, Optimiser
from winnow.data.augmentation import augment
from winnow.data.batches import Batches
from winnow.random_streams import stream_seed
from winnow.training.checkpoint import Checkpoint
from winnow.training.loop import TrainingPlan, fit, run_to_end

SEEDED_CALLS = {"manual_seed", "default_rng", "RandomState", "TPESampler", "RandomSampler", "StratifiedGroupKFold"}
"""Calls that create a generator from a seed."""


def first_numbers(seed: int, purpose: str = "augmentation", step: int = 0) -> list[float]:
    """Return the first numbers of a stream as PyTorch draws them on the CPU."""
    return torch.rand(8, generator=torch.Generator().manual_seed(stream_seed(seed, purpose, step))).tolist()


def test_pytorch_reads_32_bits_of_a_seed_on_the_cpu() -> None:
    """This is why the hash has 32 bits and a seed must not be in the upper half."""
    for low in (0, 5):
        generator_32, generator_64 = (torch.Generator().manual_seed(seed) for seed in (low, (7 << 32) + low))
        assert torch.equal(torch.rand(8, generator=generator_32), torch.rand(8, generator=generator_64))
    assert all(0 <= stream_seed(seed, "order", step) < 2**32 for seed in range(20) for step in range(20))


def test_a_stream_is_the_same_everywhere() -> None:
    assert stream_seed(0, "augmentation", 1) == 0x3E47026E
    assert first_numbers(3, "head", 4) == first_numbers(3, "head", 4)


def test_streams_differ_by_seed_purpose_and_step() -> None:
    keys = itertools.product((0, 1, 2, 2**32 - 1), ("augmentation", "order", "head"), (0, 1, 2))
    streams = [tuple(first_numbers(*key)) for key in keys]
    assert len(set(itertools.chain(*streams))) == 8 * len(streams)


def test_seed_collisions_are_as_rare_as_chance() -> None:
    seeds = [stream_seed(seed, "augmentation", step) for seed in range(10) for step in range(5000)]
    assert len(seeds) - len(set(seeds)) <= 3  # 0.3 pairs expected


def recorded_views(seed: int, steps: int, checkpoint: Checkpoint | None = None, stop: int | None = None) -> list[bytes]:
    """Return the views of each step and the final weights as bytes; training stops before step `stop`."""
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    batches = Batches(images, np.zeros(16, np.int64), np.arange(16), 16, seed=0)  # the same order for all seeds
    recorded: list[bytes] = []

    def loss(model: nn.Module, images_BCHW: torch.Tensor, _labels_B: torch.Tensor) -> torch.Tensor:
        if len(recorded) == stop:
            raise KeyboardInterrupt
        order = images_BCHW.flatten(1).sum(1).argsort()  # the order of the batch does not matter here
        views = augment(images_BCHW[order], Augmentation(jitter=0.4), images_BCHW.shape[-1])
        recorded.append(views.numpy().tobytes())
        return model(views).float().square().mean()

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        model[1].weight.fill_(0.01)
        model[1].bias.zero_()
    with contextlib.suppress(KeyboardInterrupt):
        run_to_end(fit(model, batches, loss, TrainingPlan(steps, 1, Optimiser(learning_rate=0.01), seed), checkpoint))
    recorded.append(model[1].weight.detach().numpy().tobytes())
    return recorded


def test_two_seeds_of_a_training_draw_different_views() -> None:
    first, repeated, second = (recorded_views(seed, 4) for seed in (0, 0, 1))
    assert first == repeated
    assert not set(first) & set(second)


def test_an_interrupted_training_draws_the_same_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)
    uninterrupted, checkpoint = recorded_views(7, 6), Checkpoint(tmp_path, "run")
    assert recorded_views(7, 6, checkpoint, stop=3)[:-1] == uninterrupted[:3]
    assert recorded_views(7, 6, checkpoint) == uninterrupted[3:]


def test_order_and_views_of_one_seed_use_different_streams() -> None:
    assert stream_seed(0, "order", 0) != stream_seed(0, "augmentation", 0)


@pytest.mark.parametrize("path", sorted((ROOT / "winnow").rglob("*.py")), ids=lambda path: path.stem)
def test_no_generator_is_seeded_with_a_plain_seed(path: Path) -> None:
    """Seeds of generators are hashes, or constants where a fixed pattern times or checks a file."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            not isinstance(call, ast.Call)
            or getattr(call.func, "attr", getattr(call.func, "id", "")) not in SEEDED_CALLS
        ):
            continue
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        seed = keywords.get("seed", keywords.get("random_state", call.args[0] if call.args else None))
        is_constant = isinstance(seed, ast.Constant) and isinstance(seed.value, int)
        assert is_constant or (isinstance(seed, ast.Call) and ast.unparse(seed.func) == "stream_seed"), ast.unparse(
            call
        )
