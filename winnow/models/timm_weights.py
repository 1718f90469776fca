"""Known weights of timm on the Hugging Face hub, `timm:NAME`. timm adapts their names and positions to its networks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from winnow.config.backbones import TIMM
from winnow.errors import ArtifactError, ConfigError
from winnow.models.backbones import Architecture
from winnow.models.classifier_head import backbone_state, head_path
from winnow.models.foreign_weights import (
    BATCH_COUNTER,
    State,
    check_all_used,
    check_values,
    read_tensors,
    strip_prefixes,
)
from winnow.models.input_adapter import without_adapter
from winnow.models.known_weights import NOT_STATED, KnownWeights
from winnow.models.state_loading import load_state
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
    """Load tensors into the backbone of a network of timm, in place.

    timm adapts their names and the positions of a vision transformer, and keeps random weights where the file has none:
    a second network, filled with other values, shows which. Raises ArtifactError where the file does not hold all
    tensors of the backbone, except batch counters.
    """
    network = without_adapter(model)
    head = head_path(network)
    expected = backbone_state(network, head)
    tensors = strip_prefixes(tensors, expected)
    if not tensors:
        raise ArtifactError(f"{file} holds no tensors; choose a file of timm's {name}")
    filled, changed = (
        _filled_state(name, architecture, {key: value + shift for key, value in tensors.items()}, file)
        for shift in (0, 1)
    )
    missing = [key for key in expected if not key.endswith(BATCH_COUNTER) and torch.equal(filled[key], changed[key])]
    if missing:
        listing = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ArtifactError(
            f"{file} does not hold a {name} of timm: {len(missing)} of {len(expected)} tensors are not in the file "
            f"({listing}); set the backbone to the network that the file was made from"
        )
    if {key for key in expected if not key.endswith(BATCH_COUNTER)} <= tensors.keys():  # timm has converted no names
        check_all_used(tensors, expected, head, file, TIMM + name)
    loaded = {key: filled[key] for key in expected}
    check_values(loaded, file)
    load_state(network, loaded, strict=False)


def _filled_state(name: str, architecture: Architecture, tensors: State, file: Path) -> State:
    """Return the state of a network that timm has filled with the tensors, all but the head."""
    overlay = {"state_dict": tensors, "source": ""}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # For one class, since no known weights have it: only for another number timm leaves out the file's head.
            network = build_timm_network(
                name, 1, architecture.network_size, pretrained=True, pretrained_cfg_overlay=overlay
            )
    except (ConfigError, KeyError) as error:
        raise ArtifactError(
            f"{file} does not hold the tensors of timm's {name} ({' '.join(str(error).split())[:200]}); "
            "set the backbone to the network that the file was made from"
        ) from error
    state: State = network.state_dict()
    return state
