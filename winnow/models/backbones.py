"""Build, save and load backbones by name. The architecture is JSON, the weights are safetensors, nothing is pickled.

- `resnet8`: for small images on small machines. A stride-2 3x3 stem and three residual blocks of 48, 96 and 192
  channels (0.69 M parameters, 27.6 M multiply-adds at 32x32); `width` scales the channels.
- `resnet20`, `resnet56`: those of He et al. (2015, section 4.2) for CIFAR-10, 16, 32 and 64 channels, with 1x1
  convolutions where a block halves the resolution; pruning papers report on them.
- `resnet18` and its siblings at images up to 64 pixels: the 3x3 stem of He et al. (2015, section 4.2, CIFAR), stride
  1, padding 1, no max-pool. Above 64 pixels: torchvision's own stem.
- any other torchvision classifier by its name.
- `timm:NAME`: a network of the package timm.

A network with known weights gets its own input size, mean and deviation (winnow/models/input_adapter.py), and keeps the
stem that its weights are for.

An `Architecture` also records what pruning removed (torch-pruning's history), so that a pruned network is rebuilt from
JSON, bit for bit equal to the saved one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import BasicBlock

from winnow.config.backbones import BACKBONES, SCALABLE_BACKBONES, TIMM, WINNOW_BACKBONES, unknown_backbone_message
from winnow.errors import ArtifactError, ConfigError, MissingExtra
from winnow.models.attention import split_heads
from winnow.models.classifier_head import feature_dim, set_head
from winnow.models.input_adapter import InputAdapter, InputSpec, without_adapter
from winnow.models.low_rank_layers import factorize_layers
from winnow.models.state_loading import load_state
from winnow.models.timm_networks import build_timm_network
from winnow.random_streams import stream_seed
from winnow.records import KnownWeightsDetails, read_json, write_json

SMALL_IMAGE = 64
RESNET8_CHANNELS = (48, 96, 192)
CIFAR_CHANNELS, CIFAR_BLOCKS = (16, 32, 64), {"resnet20": 3, "resnet56": 9}
WEIGHTS_FILE = "weights.safetensors"
ARCHITECTURE_FILE = "architecture.json"
START_FILE = "start.safetensors"
"""The known weights that pretraining began with."""


class Architecture(BaseModel):
    """The description from which a network is built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    num_classes: int
    image_size: int
    width: float = 1.0
    pruning: list[Any] = []
    """torch-pruning's history: [layer, is it an output channel, indices]."""
    ranks: dict[str, int] = {}
    """The rank of each layer that was factorized after pruning (winnow/models/low_rank_layers.py)."""
    heads_apart: bool = False
    """True where queries, keys and values of a vision transformer are separate layers (winnow/models/attention.py)."""
    input: InputSpec | None = None
    """The input of a network with known weights; None: images of `image_size`, normalised by winnow."""
    known_weights: tuple[KnownWeightsDetails, ...] = ()
    """The known weights that it started from, and those of its teacher."""

    @property
    def network_size(self) -> int:
        """Return the side in pixels of the images that the network itself takes."""
        return self.input.size if self.input else self.image_size

    @model_serializer(mode="wrap")
    def _omit_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the newest keys only where they say something, so that files of earlier versions stay the same."""
        content: dict[str, Any] = write(self)
        return {key: value for key, value in content.items() if value or key not in ("input", "known_weights")}

    def with_known_weights(self, *known: KnownWeightsDetails | None) -> Architecture:
        """Return the description with further known weights; None is left out, and each is named once."""
        added = [weights for weights in known if weights is not None and weights not in self.known_weights]
        return self.model_copy(update={"known_weights": (*self.known_weights, *added)})


class SmallResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling, a linear head. (B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int, stem_stride: int, stages: Sequence[tuple[int, int]]) -> None:
        """Build the network. `stages`: (channels, blocks) of each; all but the first halve the resolution."""
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
        """Return logits (B, num_classes)."""
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


def build_model(architecture: Architecture, seed: int = 0) -> nn.Module:
    """Build a network with random weights drawn from `seed`, pruned and factorized as the architecture says.

    Raises ConfigError for an unknown backbone or one that cannot take images of this size.
    """
    if architecture.backbone not in BACKBONES and not architecture.backbone.startswith(TIMM):
        raise ConfigError(unknown_backbone_message(architecture.backbone))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "network"))
        model = _build_dense(architecture)
    if architecture.heads_apart:
        split_heads(model)
    if architecture.pruning:
        replay_pruning(model, architecture.image_size, architecture.pruning)
    if architecture.ranks:
        split_heads(model)
        factorize_layers(model, architecture.ranks, keep_weights=False)
    return model


def _build_dense(architecture: Architecture) -> nn.Module:
    """Build the unpruned network."""
    name, classes = architecture.backbone, architecture.num_classes
    if name in WINNOW_BACKBONES:
        return _small_resnet(name, classes, architecture.width)
    if name.startswith(TIMM):
        model = build_timm_network(name.removeprefix(TIMM), classes, architecture.network_size)
    else:
        model = _torchvision_network(architecture)
        set_head(model, nn.Linear(feature_dim(model), classes))
    if architecture.input:
        return InputAdapter(model, architecture.input)
    if architecture.image_size <= SMALL_IMAGE and isinstance(model, torchvision.models.ResNet):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def _torchvision_network(architecture: Architecture) -> nn.Module:
    """Build a classifier of torchvision with a head for its own classes."""
    name, size = architecture.backbone, architecture.network_size
    options: dict[str, Any] = {"width_mult": architecture.width} if name in SCALABLE_BACKBONES else {}
    if name.startswith("vit_"):
        options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{name} cannot be built for images of {size} pixels ({error})") from error
    return model


def replay_pruning(model: nn.Module, image_size: int, history: list[Any]) -> None:
    """Prune the channels in torch-pruning's history again, in place. Raises MissingExtra without torch-pruning."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise MissingExtra("torch-pruning", "compress") from error
    split_heads(model)
    graph = torch_pruning.DependencyGraph().build_dependency(model.eval(), torch.zeros(1, 3, image_size, image_size))
    graph.load_pruning_history([[name, bool(is_out), list(indices)] for name, is_out, indices in history])
    update_width(model)


def update_width(model: nn.Module) -> None:
    """Update the attribute from which a pruned vision transformer reads its width, in place."""
    network = without_adapter(model)
    if isinstance(network, torchvision.models.VisionTransformer):
        network.hidden_dim = network.conv_proj.out_channels


def with_split_heads(model: nn.Module, architecture: Architecture) -> tuple[nn.Module, Architecture]:
    """Split queries, keys and values into layers, in place; return the network and the matching architecture."""
    split_heads(model)
    if isinstance(without_adapter(model), torchvision.models.VisionTransformer):
        architecture = architecture.model_copy(update={"heads_apart": True})
    return model, architecture


def save_model(folder: Path, model: nn.Module, architecture: Architecture) -> None:
    """Write weights.safetensors and architecture.json."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    write_json(folder / ARCHITECTURE_FILE, architecture.model_dump(mode="json"))


def load_architecture(folder: Path) -> Architecture:
    """Read the architecture beside the weights. Raises ArtifactError where it is missing or damaged."""
    raw = read_json(folder / ARCHITECTURE_FILE)
    try:
        return Architecture.model_validate(raw)
    except ValueError as error:
        raise ArtifactError(
            f"{folder / ARCHITECTURE_FILE} is damaged; delete the folder and run winnow again"
        ) from error


def load_backbone(folder: Path) -> nn.Module:
    """Load the network of `pretrain`'s folder, in eval mode, with a random head. Raises ArtifactError."""
    model = build_model(load_architecture(folder))
    try:
        load_state(model, {**model.state_dict(), **load_file(folder / WEIGHTS_FILE)})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _weights_error(folder, error) from error
    return model.eval()


def _weights_error(folder: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{folder / WEIGHTS_FILE} is missing or damaged ({' '.join(str(error).split())[:200]}); "
        "delete the folder and run winnow again"
    )


def load_model(folder: Path) -> tuple[nn.Module, Architecture]:
    """Load the network of a candidate's folder, in eval mode. Raises ArtifactError for a missing or damaged file."""
    architecture = load_architecture(folder)
    model = build_model(architecture)
    try:
        load_state(model, load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _weights_error(folder, error) from error
    return model.eval(), architecture
