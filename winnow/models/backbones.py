"""Backbones by name. The architecture is JSON, the weights are safetensors: nothing here loads by pickle.

- `resnet8`: for small images on small machines. A stride-2 3x3 stem and three residual blocks of 48, 96 and 192
  channels (0.69 M parameters, 27.6 M multiply-adds at 32x32); `width` scales the channels.
- `resnet20`, `resnet56`: those of He et al. (2015, section 4.2) for CIFAR-10, 16, 32 and 64 channels, with 1x1
  convolutions where a block halves the resolution; what papers on pruning compare on.
- `resnet18` and its siblings at images up to 64 pixels: the 3x3 stem of He et al. (2015, section 4.2, CIFAR), stride
  1, padding 1, no max-pool. Above 64 pixels: torchvision's own stem.
- any other torchvision classifier by its name.

An `Architecture` also remembers what pruning did (torch-pruning's history), so that a pruned network is rebuilt from
JSON and equals the one that was saved to the bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import BasicBlock

from winnow.config.backbones import BACKBONES, IN_WIDTHS, OWN, unknown_backbone
from winnow.errors import ArtifactError, ConfigError, MissingExtra
from winnow.models.attention import take_heads_apart
from winnow.models.classifier_head import feature_dim, set_head
from winnow.models.low_rank_layers import split
from winnow.random_streams import stream_seed
from winnow.records import read_json, write_json

SMALL_IMAGE = 64
RESNET8_CHANNELS = (48, 96, 192)
CIFAR_CHANNELS, CIFAR_BLOCKS = (16, 32, 64), {"resnet20": 3, "resnet56": 9}
WEIGHTS = "weights.safetensors"
ARCHITECTURE = "architecture.json"


class Architecture(BaseModel):
    """All it takes to build a network again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    num_classes: int
    image_size: int
    width: float = 1.0
    pruning: list[Any] = []
    """torch-pruning's history: [layer, is it the out side, indexes]."""
    ranks: dict[str, int] = {}
    """Layers that were split into two after that, with their rank (winnow/models/low_rank_layers.py)."""
    heads_apart: bool = False
    """Queries, keys and values of a vision transformer are layers of their own (winnow/models/attention.py)."""


class SmallResNet(nn.Module):
    """Stem, stages of residual blocks, mean over space, linear head. (B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int, stem_stride: int, stages: Sequence[tuple[int, int]]) -> None:
        """`stages`: (channels, blocks) of each; every stage but the first halves the resolution."""
        super().__init__()
        channels = stages[0][0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=stem_stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        blocks, previous = [], channels
        for stage, (out, count) in enumerate(stages):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(previous, out, stride, _shortcut(previous, out, stride)))
                previous = out
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits."""
        features_BC = self.pool(self.blocks(self.stem(x_BCHW))).flatten(1)
        logits: torch.Tensor = self.fc(features_BC)
        return logits


def _shortcut(previous: int, out: int, stride: int) -> nn.Module | None:
    if stride == 1 and previous == out:
        return None
    return nn.Sequential(nn.Conv2d(previous, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))


def _small_resnet(name: str, classes: int, width: float) -> nn.Module:
    stride, channels = (2, RESNET8_CHANNELS) if name == "resnet8" else (1, CIFAR_CHANNELS)
    blocks = CIFAR_BLOCKS.get(name, 1)
    return SmallResNet(classes, stride, [(max(8, round(count * width / 8) * 8), blocks) for count in channels])


def build(architecture: Architecture, seed: int = 0) -> nn.Module:
    """A network with random weights drawn from `seed`, pruned where the architecture says so.

    Raises ConfigError for an unknown backbone or one that cannot take images of this size.
    """
    if architecture.backbone not in BACKBONES:
        raise ConfigError(unknown_backbone(architecture.backbone))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "network"))
        model = _fresh(architecture)
    if architecture.heads_apart:
        take_heads_apart(model)
    if architecture.pruning:
        replay(model, architecture.image_size, architecture.pruning)
    if architecture.ranks:
        take_heads_apart(model)
        split(model, architecture.ranks, keep_weights=False)
    return model


def _fresh(architecture: Architecture) -> nn.Module:
    name, classes = architecture.backbone, architecture.num_classes
    if name in OWN:
        return _small_resnet(name, classes, architecture.width)
    small = architecture.image_size <= SMALL_IMAGE
    scaled = {"width_mult": architecture.width} if name in IN_WIDTHS else {}
    sized = {"image_size": architecture.image_size} if name.startswith("vit_") else {}
    quiet = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **scaled, **sized, **quiet)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"pretrain.backbone: {name} cannot be built for images of {architecture.image_size} pixels ({error})"
        ) from error
    set_head(model, nn.Linear(feature_dim(model), classes))
    if small and isinstance(model, torchvision.models.ResNet):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def replay(model: nn.Module, image_size: int, history: list[Any]) -> None:
    """Remove again, in place, what torch-pruning's history names."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtra("torch-pruning", "compress") from error
    take_heads_apart(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model.eval(), torch.zeros(1, 3, image_size, image_size))
    graph.load_pruning_history([[name, bool(out), list(indexes)] for name, out, indexes in history])
    settle(model)


def settle(model: nn.Module) -> None:
    """Tell a pruned network its own width, where its code asks an attribute and not the weights."""
    if isinstance(model, torchvision.models.VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels


def with_heads_apart(model: nn.Module, architecture: Architecture) -> tuple[nn.Module, Architecture]:
    """The network with queries, keys and values as layers, in place, and the architecture that says so."""
    take_heads_apart(model)
    apart = isinstance(model, torchvision.models.VisionTransformer)
    return model, architecture.model_copy(update={"heads_apart": apart}) if apart else architecture


def save_model(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """weights.safetensors and architecture.json."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    write_json(folder / ARCHITECTURE, architecture.model_dump(mode="json"))


def load_architecture(folder: Path) -> Architecture:
    """The architecture beside the weights. Raises ArtifactError."""
    raw = read_json(folder / ARCHITECTURE)
    try:
        return Architecture.model_validate(raw)
    except ValueError as error:
        raise ArtifactError(f"{folder / ARCHITECTURE} is damaged; delete the folder and run winnow again") from error


def load_backbone(folder: Path) -> nn.Module:
    """The network of `pretrain`'s folder, in eval mode, with a random head. Raises ArtifactError as `load_model`."""
    model = build(load_architecture(folder))
    try:
        state = {**model.state_dict(), **load_file(folder / WEIGHTS)}
        model.load_state_dict(_with_versions(state, model))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unreadable(folder, error) from error
    return model.eval()


def _unreadable(folder: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{folder / WEIGHTS} is missing or damaged ({' '.join(str(error).split())[:200]}); "
        "delete the folder and run winnow again"
    )


def _with_versions(state: dict[str, torch.Tensor], model: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """The state with the modules' versions, which MNASNet asks for: safetensors holds tensors alone."""
    found = OrderedDict(state)
    found._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return found


def load_model(folder: Path) -> tuple[nn.Module, Architecture]:
    """The network of a candidate's folder, in eval mode. Raises ArtifactError when a file is missing or damaged."""
    architecture = load_architecture(folder)
    model = build(architecture)
    try:
        model.load_state_dict(_with_versions(load_file(folder / WEIGHTS), model))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unreadable(folder, error) from error
    return model.eval(), architecture
