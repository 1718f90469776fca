from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.winnow.training.tiny_training import cross_entropy, tiny_problem
from winnow.config import Optimiser
from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model
from winnow.training.checkpoint import Checkpoint, TrainingState, load_checkpoint, save_checkpoint
from winnow.training.loop import fit, run_to_end
from winnow.training.optimiser import create_sgd


def test_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    model, batches, plan = tiny_problem()
    checkpoint = Checkpoint(tmp_path, "run")
    checkpoint.tensors.write_bytes(b"not safetensors")
    with pytest.raises(ArtifactError, match=r"run\.safetensors is damaged.*delete it"):
        run_to_end(fit(model, batches, cross_entropy, plan, checkpoint))


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    model, batches, plan = tiny_problem()
    run_to_end(fit(model, batches, cross_entropy, plan, Checkpoint(tmp_path, "run")))
    wider_model = build_model(Architecture(backbone="resnet8", num_classes=2, image_size=8, width=0.4))
    with pytest.raises(ArtifactError, match="damaged"):
        run_to_end(fit(wider_model, batches, cross_entropy, plan, Checkpoint(tmp_path, "run")))


def test_a_training_of_mnasnet_resumes(tmp_path: Path) -> None:
    """Its tensors are loaded with the version that safetensors does not store."""
    architecture = Architecture(backbone="mnasnet0_5", num_classes=2, image_size=32)
    trained, resumed = (build_model(architecture, seed) for seed in (0, 1))
    checkpoint, settings = Checkpoint(tmp_path, "run"), Optimiser(learning_rate=0.1)
    save_checkpoint(checkpoint, trained, create_sgd(trained, settings), TrainingState(step=3), tensors=True)
    assert load_checkpoint(checkpoint, resumed, create_sgd(resumed, settings)).step == 3
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
