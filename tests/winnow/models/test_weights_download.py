from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torchvision

from tests.winnow.models.weight_caches import add_to_hub, lay_out_torchvision
from winnow.models.weights_lookup import find_weights


def test_weights_come_from_the_caches_in_the_home_folder(
    home: Path, hub: Path, torch_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """winnow gives its processes caches of their own, so the user's are looked up where the libraries keep them."""
    add_to_hub(home / ".cache/huggingface/hub", "timm/resnet18.a1_in1k", timm.create_model("resnet18"))
    assert find_weights("timm:resnet18.a1_in1k", "", tmp_path).file.is_relative_to(home)
    checkpoints = home / ".cache/torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    lay_out_torchvision(checkpoints, torchvision.models.resnet18(weights=None), monkeypatch)
    assert find_weights("torchvision:resnet18", "", tmp_path).file.parent == checkpoints
