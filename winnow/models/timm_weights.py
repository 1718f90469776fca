"""Known weights of timm on the Hugging Face hub, `timm:NAME`. timm adapts their names and positions to its networks."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from winnow.config.backbones import TIMM
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import Architecture
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.foreign_weights import State, read_tensors
from winnow.models.input_adapter import without_adapter
from winnow.models.known_weights import NOT_STATED, KnownWeights
from winnow.models.timm_networks import build_timm_network, import_timm
from winnow.models.weights_download import check_digest, digest_of_blob, download_hub_file


def find_timm_weights(name: str, cache: Path) -> KnownWeights:
    """Return timm's weights of this name, from the hub's cache or downloaded to `cache`.

    Raises ConfigError for weights that timm does not know, ArtifactError where they cannot be downloaded or are
    damaged, MissingExtra without timm.
    """
    timm = import_timm()
    network = name.partition(".")[0]
    known = timm.models.get_pretrained_cfg(name) if name in (network, *timm.list_pretrained(f"{network}.*")) else None
    if known is None or not known.hf_hub_id:
        tags = timm.list_pretrained(f"{network}*")[:8]
        raise ConfigError(f"timm:{name}: timm {timm.__version__} has no such weights; similar names: {', '.join(tags)}")
    file = download_hub_file(known.hf_hub_id, known.hf_hub_filename or "model.safetensors", cache)

    def fill(model: nn.Module, architecture: Architecture) -> None:
        fill_timm_network(model, architecture, name, read_tensors(file), file)

    return KnownWeights(
        f"timm:{name}",
        TIMM + name.partition(".")[0],
        file,
        check_digest(file, digest_of_blob(file)),
        known.license or NOT_STATED,
        known.input_size[1],
        tuple(known.mean),
        tuple(known.std),
        known.interpolation,
        fill,
    )


def fill_timm_network(model: nn.Module, architecture: Architecture, name: str, tensors: State, file: Path) -> None:
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
