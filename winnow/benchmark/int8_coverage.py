"""Whether int8 ran: the share of multiply-adds that a runtime executes in int8, read from its own executed graph.

A file that stores int8 weights is no proof: a runtime that has no kernel for what it finds computes in float, as slowly
as before, and says nothing. OpenVINO tells the precision and the kernel of each node of its compiled model; ONNX
Runtime writes the graph it made of the file, in which only QLinear... and ...Integer nodes compute in int8. Nodes are
told by the names they have in the file; what cannot be found again counts as float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from winnow.deploy.onnx_export import load_onnx, macs_by_node
from winnow.deploy.onnx_session import MODEL
from winnow.deploy.runtimes import OPENVINO, BenchmarkCase, compiled_openvino

TOLD = ("originalLayersNames", "primitiveType", "runtimePrecision")
INT8 = ("u8", "i8", "int8_t", "uint8_t")
INTEGER_NODES = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize")


def executed(folder: Path, cell: BenchmarkCase) -> dict[str, Any]:
    """Return {candidate, runtime, precision, int8_share, kernels} of a candidate's file.

    kernels: name -> share of the multiply-adds.

    Raises ArtifactError for a file that cannot be opened.
    """
    macs = macs_by_node(folder / MODEL)
    whole = sum(macs.values())
    nodes = (_by_openvino if cell.runtime in OPENVINO else _by_onnxruntime)(folder, cell)
    kernels: Counter[str] = Counter()
    in_int8 = 0
    for name, kernel, is_int8 in nodes:
        if name in macs:
            kernels[kernel] += macs[name]
            in_int8 += macs.pop(name) if is_int8 else 0
    return {
        "candidate": cell.candidate,
        "runtime": cell.runtime,
        "precision": cell.precision,
        "int8_share": in_int8 / whole if whole else 0.0,
        "kernels": {kernel: count / whole for kernel, count in kernels.most_common()},
    }


def _by_openvino(folder: Path, cell: BenchmarkCase) -> Iterator[tuple[str, str, bool]]:
    """(name in the file, kernel, is it int8) of each node that was executed."""
    for node in compiled_openvino(folder, cell).get_runtime_model().get_ops():
        about = node.get_rt_info()
        told = {key: str(about[key].value) for key in TOLD if key in about}
        for name in told.get("originalLayersNames", "").split(","):
            # A fused node has several; a linear layer is "node_linear/WithoutBiases/...".
            yield name.partition("/")[0], told.get("primitiveType", ""), told.get("runtimePrecision", "") in INT8


def _by_onnxruntime(folder: Path, cell: BenchmarkCase) -> Iterator[tuple[str, str, bool]]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as name:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(name) / MODEL)
        onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        graph = load_onnx(Path(name) / MODEL).graph
    for node in graph.node:
        # What it fused is called "node_Conv_198_token_11".
        yield node.name.partition("_token_")[0], node.op_type, node.op_type.startswith(INTEGER_NODES)
