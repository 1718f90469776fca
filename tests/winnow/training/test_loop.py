from __future__ import annotations

import itertools
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.winnow.training.tiny_training import cross_entropy, tiny_problem
from winnow.config import Optimiser
from winnow.data.batches import Batches
from winnow.errors import TrainingError
from winnow.training.checkpoint import Checkpoint
from winnow.training.loop import Epoch, TrainingPlan, fit, learning_rate_at, run_to_end


def weight_bytes(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def test_the_loss_decreases() -> None:
    model, batches, plan = tiny_problem()
    curves = run_to_end(fit(model, batches, cross_entropy, plan))
    assert [row["epoch"] for row in curves] == [1, 2, 3, 4]
    assert curves[-1]["loss"] < 0.5 * curves[0]["loss"]


def test_one_step_equals_sgd() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    initial = model[1].weight.detach().clone()
    images = np.full((4, 2, 2, 3), 200, np.uint8)
    batches = Batches(images, np.array([0, 1, 0, 1]), np.arange(4), 4, 0)

    def loss(model: nn.Module, images_BCHW: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        return model(images_BCHW.float() / 200).float().sum()

    run_to_end(
        fit(model, batches, loss, TrainingPlan(1, 1, Optimiser(learning_rate=0.5, weight_decay=0.1, warmup=0), 0))
    )
    gradient = torch.full_like(initial, 4.0) + 0.1 * initial
    nesterov_factor = 1 + 0.9
    torch.testing.assert_close(
        model[1].weight.detach(), initial - 0.5 * nesterov_factor * gradient, rtol=2e-2, atol=1e-3
    )


def test_weights_depend_on_the_seed_only() -> None:
    digests = []
    for seed in (0, 0, 1):
        model, batches, plan = tiny_problem(seed)
        run_to_end(fit(model, batches, cross_entropy, plan))
        digests.append(weight_bytes(model))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int) -> None:
    uninterrupted, batches, plan = tiny_problem()
    expected = run_to_end(fit(uninterrupted, batches, cross_entropy, plan))

    class Killed(Exception):
        pass

    steps = 0

    def failing_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_after * 5 + 3:  # in the middle of an epoch
            raise Killed
        return cross_entropy(model, images, labels)

    monkeypatch.setattr("winnow.training.loop.CHECKPOINT_SECONDS", 0.0)
    checkpoint = Checkpoint(tmp_path, "run")
    interrupted, batches, plan = tiny_problem()
    with pytest.raises(Killed):
        run_to_end(fit(interrupted, batches, failing_loss, plan, checkpoint))
    resumed, batches, plan = tiny_problem(0)
    curves = run_to_end(fit(resumed, batches, cross_entropy, plan, checkpoint))
    assert curves == expected
    assert weight_bytes(resumed) == weight_bytes(uninterrupted)
    assert len(checkpoint.curves.read_text().splitlines()) == 4
    # A finished training is not run again, and still gives its curves.
    restarted, batches, plan = tiny_problem()
    assert run_to_end(fit(restarted, batches, failing_loss, plan, checkpoint)) == expected


@pytest.mark.thorough
@pytest.mark.parametrize("stop_in", [1, 5, 8, 10])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_within_a_step_it_goes_on_from_the_end_of_that_step(
    tmp_path: Path, stop_in: int, signal_number: signal.Signals
) -> None:
    uninterrupted, batches, plan = tiny_problem()
    expected = run_to_end(fit(uninterrupted, batches, cross_entropy, plan))
    steps = 0

    class Stopped(Exception):
        pass

    def raise_stopped(_signal: int, _frame: object) -> None:
        raise Stopped

    def signalling_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == stop_in:
            os.kill(os.getpid(), signal_number)
        return cross_entropy(model, images, labels)

    previous_handler = signal.signal(signal_number, raise_stopped)
    try:
        checkpoint = Checkpoint(tmp_path, "run")
        interrupted, batches, plan = tiny_problem()
        with pytest.raises(Stopped):
            run_to_end(fit(interrupted, batches, signalling_loss, plan, checkpoint))
        assert signal.getsignal(signal_number) is raise_stopped
        resumed, batches, plan = tiny_problem()
        curves = run_to_end(fit(resumed, batches, signalling_loss, plan, checkpoint))
    finally:
        signal.signal(signal_number, previous_handler)
    assert steps == plan.steps  # no step was repeated
    assert curves == expected
    assert weight_bytes(resumed) == weight_bytes(uninterrupted)


def test_values_added_by_the_monitor_are_kept(tmp_path: Path) -> None:
    model, batches, plan = tiny_problem()

    def add_knn(epoch: Epoch) -> None:
        epoch.row["knn"] = epoch.number / 10

    curves = run_to_end(fit(model, batches, cross_entropy, plan, Checkpoint(tmp_path, "run")), add_knn)
    assert [row["knn"] for row in curves] == [0.1, 0.2, 0.3, 0.4]


def test_loss_that_is_no_number_stops() -> None:
    model, batches, plan = tiny_problem()
    with pytest.raises(TrainingError, match="learning rate"):
        run_to_end(fit(model, batches, lambda m, x, y: cross_entropy(m, x, y) * float("nan"), plan))


def test_schedule_warms_up_and_ends_at_zero() -> None:
    plan = TrainingPlan(10, 10, Optimiser(learning_rate=1.0, warmup=0.1), 0)
    rates = [learning_rate_at(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 0.001
