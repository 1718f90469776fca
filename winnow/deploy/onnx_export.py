"""Export a network as one ONNX file, uint8 pixels in, logits out, with normalisation inside; inspect such files.

    export_onnx(model, architecture, folder / "model.onnx")

The batch size is dynamic, the weights are in the file, and the exporter's notes on the machine (stack traces with
paths) are removed, so that the same network gives the same bytes anywhere. `inspect_onnx` counts a file's multiply-adds
and how many of them are int8. Int8 files are made from the exported float file, never exported from a quantized network
(the exporter loses QDQ nodes).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from winnow.data.augmentation import normalise, to_float
from winnow.deploy.onnx_session import INPUT, OUTPUT
from winnow.errors import ArtifactError, MissingExtra
from winnow.models.backbones import Architecture
from winnow.records import atomic_path
from winnow.timing_lock import compute_lock

OPSET = 20
KNOWN_WEIGHTS = "winnow.known_weights"
"""Key in the metadata of a file: a JSON list of winnow.records.KnownWeightsDetails."""
PASS_THROUGH_OPERATORS = ("DequantizeLinear", "QuantizeLinear", "Reshape", "Transpose", "Identity")
"""Operators that change only the form of weights."""
PARITY_TOLERANCE = 1e-3
"""The largest difference of logits between file and network, as a share of the largest logit (at least 1)."""


class Deployable(nn.Module):
    """The network that is exported, and timed in PyTorch: pixels uint8 (N, S, S, 3) -> logits float32 (N, C)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.inner(normalise(to_float(pixels.permute(0, 3, 1, 2))))
        return logits


@compute_lock()
def export_onnx(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Write the network in eval mode as one ONNX file. The model is moved to the CPU, in contiguous memory format."""
    onnx = _import_onnx()
    side = architecture.image_size
    network = Deployable(model.cpu().eval().to(memory_format=torch.contiguous_format)).eval()
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with _silence_exporter():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            verbose=False,
        )
    assert program is not None
    save_onnx(onnx.load_from_string(program.model_proto.SerializeToString()), path, architecture)


def save_onnx(proto: Any, path: Path, architecture: Architecture | None = None) -> None:
    """Write a model as one file, atomically, without the notes of exporters.

    The file's metadata names the known weights of `architecture`: their origin, digest, licence, and input.
    """
    _strip_notes(proto)
    if architecture is not None and architecture.known_weights:
        known = [weights.model_dump(mode="json") for weights in architecture.known_weights]
        proto.metadata_props.add(key=KNOWN_WEIGHTS, value=json.dumps(known))
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def write_onnx(content: bytes, path: Path, architecture: Architecture) -> None:
    """Write an ONNX file that was made from another one, with the known weights of `architecture` in its metadata."""
    if architecture.known_weights:
        save_onnx(_import_onnx().load_from_string(content), path, architecture)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _strip_notes(proto: Any) -> None:
    del proto.metadata_props[:]
    proto.doc_string, proto.producer_name, proto.producer_version = "", "winnow", ""
    proto.graph.doc_string, proto.graph.name = "", "winnow"
    graph = proto.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]


@dataclass(frozen=True)
class OnnxContents:
    """The computation in a deployed file."""

    macs: int
    """The multiply-adds of convolutions and matrix products with stored weights, for one image."""
    int8_macs: int
    """The multiply-adds whose weights are stored in int8."""
    zeros: int
    """The number of zeros among these weights."""

    @property
    def precision(self) -> Literal["f32", "int8"]:
        """Return int8 where any multiply-add is int8, else f32; a gate judges their share."""
        return "int8" if self.int8_macs else "f32"


def load_onnx(path: Path) -> Any:
    """Read the model in a file. Raises ArtifactError where it is missing or damaged."""
    onnx = _import_onnx()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(path)
        if not proto.graph.input:
            raise ValueError("it holds no graph")
    except (OSError, ValueError, DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as an ONNX file; run its step again ({error})") from error
    return proto


def graph_digest(path: Path) -> str:
    """Return a digest of an ONNX file's operators, attributes and shapes, without the values of its weights.

    Raises ArtifactError when the file is missing or damaged.
    """
    graph = load_onnx(path).graph
    digest = hashlib.sha256()
    for node in graph.node:
        attributes = [attribute.SerializeToString(deterministic=True) for attribute in node.attribute]
        digest.update(repr((node.op_type, list(node.input), list(node.output), attributes)).encode())
    for weights in graph.initializer:
        digest.update(repr((weights.name, list(weights.dims), weights.data_type)).encode())
    return digest.hexdigest()


def inspect_onnx(path: Path) -> OnnxContents:
    """Count a file's multiply-adds per image from its shapes. Raises ArtifactError where it is missing or damaged."""
    macs = int8_macs = zeros = 0
    for layer in _layers(path):
        macs += layer.macs
        int8_macs += layer.macs if layer.is_int8 else 0
        zeros += layer.zeros
    return OnnxContents(macs, int8_macs, zeros)


def macs_by_node(path: Path) -> dict[str, int]:
    """Return the multiply-adds for one image of each node with stored weights, by the node's name in the file."""
    return {layer.node: layer.macs for layer in _layers(path)}


def float_layers(path: Path) -> list[str]:
    """Return the names of weights of convolutions and matrix products that are not stored in int8."""
    return [layer.weight for layer in _layers(path) if not layer.is_int8]


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix product with stored weights."""

    node: str
    weight: str
    macs: int
    is_int8: bool
    zeros: int


def _layers(path: Path) -> list[_Layer]:
    onnx = _import_onnx()
    proto = load_onnx(path)
    try:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        del proto.graph.value_info[:]
        return list(_describe_layers(onnx.shape_inference.infer_shapes(proto, data_prop=True).graph))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ArtifactError(f"{path}: shapes cannot be inferred; run its step again ({error})") from error


def _describe_layers(graph: Any) -> Iterator[_Layer]:
    onnx = _import_onnx()
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    for node, weight in _weighted_nodes(graph):
        array = onnx.numpy_helper.to_array(weight)
        # Each weight is used once per output position: pixels of (N, C, H, W), tokens of (N, T, C).
        shape = shapes.get(node.output[0], [])
        positions = math.prod(max(1, side) for side in (shape[2:] if "Conv" in node.op_type else shape[:-1]))
        zeros = int((array == _zero_point(node, initializers)).sum())
        yield _Layer(node.name, weight.name, array.size * positions, array.dtype.itemsize == 1, zeros)


def _weighted_nodes(graph: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (node, tensor of its weights) of every convolution and matrix product with stored weights."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"):
            weight = _stored_weight(node.input[1], producers, initializers)
            if weight is not None:
                yield node, weight


def _stored_weight(name: str, producers: dict[str, Any], initializers: dict[str, Any]) -> Any:
    """Return the stored tensor behind an input, through dequantization and reshaping; None where it is computed."""
    while name not in initializers:
        node = producers.get(name)
        if node is None or node.op_type not in PASS_THROUGH_OPERATORS:
            return None
        name = node.input[0]
    return initializers[name]


def _zero_point(node: Any, initializers: dict[str, Any]) -> Any:
    """Return the value that stands for zero among the weights: dynamic int8 stores them with a zero point."""
    is_stored = node.op_type.endswith("Integer") and len(node.input) > 3 and node.input[3] in initializers
    return _import_onnx().numpy_helper.to_array(initializers[node.input[3]]) if is_stored else 0


def zipped_bytes(path: Path) -> int:
    """Return the size after deflate (level 6) in bytes, as in an archive or a compressed download."""
    return len(zlib.compress(path.read_bytes(), 6))


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "compress") from error
    return onnx


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the exporter's logs, warnings and prints, which concern its own passes and deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
