"""Methods that make a network smaller or faster, one file each. `METHODS` maps the type of a config to its function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from winnow.compression.cluster import cluster
from winnow.compression.distill import distill
from winnow.compression.factorize import factorize
from winnow.compression.method_inputs import MethodInputs
from winnow.compression.probe import probe
from winnow.compression.prune import prune
from winnow.compression.quantize import quantize
from winnow.compression.recovery import learns_from_large_network, teacher_kind
from winnow.compression.sparsify import sparsify
from winnow.config import Candidate, Cluster, Distill, Factorize, Probe, Prune, Quantize, Sparsify
from winnow.deploy.onnx_export import export_onnx, write_onnx
from winnow.deploy.onnx_session import MODEL
from winnow.models.backbones import ARCHITECTURE_FILE, load_architecture, save_model
from winnow.models.network import Network, OnnxNetwork
from winnow.records import write_json
from winnow.records.method_results import MethodResult

METHODS: dict[type, Callable[[Any, MethodInputs], tuple[Network | OnnxNetwork, MethodResult]]] = {
    Prune: prune,
    Sparsify: sparsify,
    Factorize: factorize,
    Cluster: cluster,
    Quantize: quantize,
    Distill: distill,
    Probe: probe,
}
"""Config type -> function of (settings, inputs) that returns the network and the method's part of record.json."""


def run_method(settings: Candidate, inputs: MethodInputs) -> tuple[Network | OnnxNetwork, MethodResult]:
    """Run the method of `settings`; return the network, with the known weights that it learned from, and the result."""
    network, result = METHODS[type(settings)](settings, inputs)
    recovery = settings.training
    if recovery is None:
        return network, result
    if result.curves:
        result = result.model_copy(update={"teacher": teacher_kind(recovery, inputs)})
    if inputs.teacher is not None and learns_from_large_network(recovery, inputs):
        known = load_architecture(inputs.teacher).known_weights
        network = replace(network, architecture=network.architecture.with_known_weights(*known))
    return network, result


def write_candidate(settings: Candidate, inputs: MethodInputs, folder: Path) -> MethodResult:
    """Run the method of `settings`, write its network to `folder`, and return its part of record.json."""
    network, result = run_method(settings, inputs)
    write_network(network, folder)
    return result


def write_network(network: Network | OnnxNetwork, folder: Path) -> None:
    """Write model.onnx and architecture.json to `folder`, and the weights of a PyTorch network."""
    if isinstance(network, OnnxNetwork):
        write_json(folder / ARCHITECTURE_FILE, network.architecture.model_dump(mode="json"))
        write_onnx(network.content, folder / MODEL, network.architecture)
        return
    save_model(folder, network.model, network.architecture)
    export_onnx(network.model, network.architecture, folder / MODEL)
