from __future__ import annotations

from pathlib import Path

import pytest

from tests.winnow.training.tiny_training import cross_entropy, tiny_problem
from winnow.errors import ArtifactError
from winnow.models.backbones import Architecture, build_model
from winnow.training.checkpoint import Checkpoint
from winnow.training.loop import fit, run_to_end


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
