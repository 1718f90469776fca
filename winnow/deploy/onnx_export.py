"""From a network to the file that is deployed: one ONNX file, uint8 pixels in, logits out, normalisation inside.

    export_onnx(model, architecture, folder / "model.onnx")

The batch is dynamic, the weights are in the file, and what the exporter notes about the machine it ran on (stack
traces with paths) is taken out, so that the same network gives the same bytes anywhere. `look_into` reads a file back:
how many multiply-adds it holds, and how many of them are int8. Int8 files are made from the exported float file, never
exported from a quantized network (QDQ through the exporter loses nodes).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from winnow.data.augmentation import normalise, to_float
from winnow.deploy.onnx_session import INPUT, OUTPUT
from winnow.errors import ArtifactError, MissingExtra
from winnow.models.backbones import Architecture
from winnow.records import renamed
from winnow.timing_lock import compute_lock

OPSET = 20
THROUGH = ("DequantizeLinear", "QuantizeLinear", "Reshape", "Transpose", "Identity")
"""Operations that hand weights on unchanged but for their form."""
PARITY_TOLERANCE = 1e-3
"""Largest difference of logits between file and network, as a share of the largest logit (at least 1)."""


class Deployable(nn.Module):
    """What is exported and what is timed in PyTorch: pixels uint8 (N, S, S, 3) -> logits float32 (N, C)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.inner(normalise(to_float(pixels.permute(0, 3, 1, 2))))
        return logits


@compute_lock()
def export_onnx(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Write the network in eval mode as one ONNX file. The model is moved to the CPU, its memory format is kept out."""
    onnx = _onnx()
    side = architecture.image_size
    network = Deployable(model.cpu().eval().to(memory_format=torch.contiguous_format)).eval()
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with _quiet():
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
    save_onnx(onnx.load_from_string(program.model_proto.SerializeToString()), path)


def save_onnx(proto: Any, path: Path) -> None:
    """Write a model as one file, without notes of exporters and machines, to a temporary name and renamed."""
    _strip(proto)
    with renamed(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _strip(proto: Any) -> None:
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
class Contents:
    """What is in a deployed file."""

    macs: int
    """Multiply-adds of convolutions and matrix products with stored weights, for one image."""
    int8_macs: int
    """Those whose weights are stored in int8."""
    zeros: int
    """Zero entries of their weights."""

    @property
    def precision(self) -> str:
        """int8 as soon as some multiply-adds are; whether they are enough is for a gate to say."""
        return "int8" if self.int8_macs else "f32"


def load_onnx(path: Path) -> Any:
    """The model in a file. Raises ArtifactError when it is missing or damaged."""
    onnx = _onnx()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(path)
        if not proto.graph.input:
            raise ValueError("it holds no graph")
    except (OSError, ValueError, DecodeError) as error:
        raise ArtifactError(f"{path} is no ONNX file that can be read; run its step again ({error})") from error
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


def look_into(path: Path) -> Contents:
    """Count what a file computes per image, from its shapes. Raises ArtifactError when it is missing or damaged."""
    macs = int8_macs = zeros = 0
    for layer in _layers(path):
        macs += layer.macs
        int8_macs += layer.macs if layer.is_int8 else 0
        zeros += layer.zeros
    return Contents(macs, int8_macs, zeros)


def macs_by_node(path: Path) -> dict[str, int]:
    """Multiply-adds for one image of every node with stored weights, by the node's name in the file."""
    return {layer.node: layer.macs for layer in _layers(path)}


def float_layers(path: Path) -> list[str]:
    """Names of the weights of convolutions and matrix products that are not stored in int8."""
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
    onnx = _onnx()
    proto = load_onnx(path)
    try:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        del proto.graph.value_info[:]
        return list(_described(onnx.shape_inference.infer_shapes(proto, data_prop=True).graph))
    except (ValueError, RuntimeError, IndexError) as error:
        raise ArtifactError(f"{path}: its graph cannot be followed; run its step again ({error})") from error


def _described(graph: Any) -> Iterator[_Layer]:
    onnx = _onnx()
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    for node, weight in _weighted(graph):
        array = onnx.numpy_helper.to_array(weight)
        # Every weight is used once per place: pixels of (N, C, H, W), tokens of (N, T, C).
        size = sizes.get(node.output[0], [])
        places = math.prod(max(1, side) for side in (size[2:] if "Conv" in node.op_type else size[:-1]))
        zeros = int((array == _zero(node, arrays)).sum())
        yield _Layer(node.name, weight.name, array.size * places, array.dtype.itemsize == 1, zeros)


def _weighted(graph: Any) -> Iterator[tuple[Any, Any]]:
    """(node, tensor of its weights) of every convolution and matrix product with stored weights."""
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"):
            weight = _weight(node.input[1], made_by, arrays)
            if weight is not None:
                yield node, weight


def _weight(name: str, made_by: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """The stored tensor behind an input, through dequantization and reshaping; None when it is computed."""
    while name not in arrays:
        node = made_by.get(name)
        if node is None or node.op_type not in THROUGH:
            return None
        name = node.input[0]
    return arrays[name]


def _zero(node: Any, arrays: dict[str, Any]) -> Any:
    """What stands for zero among the weights: dynamic int8 stores them unsigned, around a zero point of their own."""
    stored = node.op_type.endswith("Integer") and len(node.input) > 3 and node.input[3] in arrays
    return _onnx().numpy_helper.to_array(arrays[node.input[3]]) if stored else 0


def zipped_bytes(path: Path) -> int:
    """Size after deflate (level 6): what an archive or a download with compression holds."""
    return len(zlib.compress(path.read_bytes(), 6))


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "compress") from error
    return onnx


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about its own passes and about deprecations of its own making."""
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
