"""Lay out weights as the caches of the Hugging Face hub and of torch hold them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn


def add_to_hub(hub: Path, repository: str, network: nn.Module) -> Path:
    """Lay out the network's weights as the hub's cache does; return the blob."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    for name in ("blobs", "refs", f"snapshots/{revision}"):
        (folder / name).mkdir(parents=True)
    save_file(network.state_dict(), folder / "new")
    blob = folder / "blobs" / hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    (folder / "new").rename(blob)
    (folder / "refs/main").write_text(revision)
    (folder / f"snapshots/{revision}/model.safetensors").symlink_to(blob)
    return blob


def lay_out_torchvision(torch_cache: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the network's weights where torch keeps resnet18's, under the digest that they have."""
    torch.save(network.state_dict(), torch_cache / "new.pth")
    digest = hashlib.sha256((torch_cache / "new.pth").read_bytes()).hexdigest()[:8]
    file = torch_cache / f"resnet18-{digest}.pth"
    (torch_cache / "new.pth").rename(file)
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry, "_value_", type(entry.value)(f"https://x/{file.name}", entry.transforms, entry.meta))
    return file
